"""Serving: talking with a model, for now in the terminal."""
