"""Inference: the engine that turns prompts into answers, how it samples, and the calculator it lends the model."""

from nanochat.inference.asynchronous import AsyncEngine, AsyncRequest, QueueFullError
from nanochat.inference.calculator import calculate
from nanochat.inference.engine import Engine, Prompt, Stats
from nanochat.inference.request import Request, Result
from nanochat.inference.sampling import SamplingParams
from nanochat.inference.transcript import Delta, Token, join_deltas

__all__ = [
    "AsyncEngine",
    "AsyncRequest",
    "Delta",
    "Engine",
    "Prompt",
    "QueueFullError",
    "Request",
    "Result",
    "SamplingParams",
    "Stats",
    "Token",
    "calculate",
    "join_deltas",
]
