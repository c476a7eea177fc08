"""The model: configuration, modeling and accounting."""
