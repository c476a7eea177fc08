"""The model: configuration, modeling and accounting."""

# Before any module of this room: Transformers' import registers our classes, which must not be half-made then.
import transformers  # noqa: F401
