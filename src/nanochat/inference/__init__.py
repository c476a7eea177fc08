"""Inference: the engine that turns prompts into answers, how it samples, and the calculator it lends the model."""

from nanochat.inference.calculator import calculate
from nanochat.inference.engine import Engine, Prompt, Result
from nanochat.inference.sampling import SamplingParams
from nanochat.inference.transcript import Delta, join_deltas

__all__ = ["Delta", "Engine", "Prompt", "Result", "SamplingParams", "calculate", "join_deltas"]
