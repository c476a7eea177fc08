"""How fast the engine answers with a model on this machine, and what share of the memory bandwidth that takes."""

import dataclasses
import json
import random
import statistics
import time
from collections.abc import Iterator
from typing import cast

import torch

from nanochat.common import si
from nanochat.inference.engine import Engine
from nanochat.inference.runner import page_bytes
from nanochat.inference.sampling import SamplingParams
from nanochat.model.accounting import parameter_counts
from nanochat.model.configuration import NanoChatConfig
from nanochat.native.decoder import PAGE
from nanochat.native.packing import BITS, GROUP

ROWS = (1, 16)
PROMPT_TOKENS = NEW_TOKENS = 128  # less where the context is short
PROBE_BYTES = {"cpu": 2**29, "cuda": 2**32}  # far more than any cache holds


@dataclasses.dataclass(frozen=True)
class Speed:
    """What `rows` requests at once got: medians over repeats.

    Attributes:
        rows: Requests at once.
        prompt_tokens: Of each request.
        first_token_seconds: From a request to its first token, median of the rows.
        tokens_per_second: Of all rows together, from the last row's first token on.
        bandwidth_share: Bytes that had to be read for it, of those the memory gives.
    """

    rows: int
    prompt_tokens: int
    first_token_seconds: float
    tokens_per_second: float
    bandwidth_share: float

    def __str__(self) -> str:
        streams = "1 stream" if self.rows == 1 else f"{self.rows} streams"
        first = f"first token after {self.first_token_seconds * 1e3:,.0f} ms"
        return (
            f"{streams:10}  prompt of {self.prompt_tokens}: {first}, "
            f"{self.tokens_per_second:,.0f} tokens/s, {self.bandwidth_share:.0%} of the memory bandwidth"
        )


def bench(engine: Engine, quantize: str | None) -> None:
    """Measure, and print for people and, in the last line, as JSON. `quantize` is what the engine was made with."""
    bandwidth = memory_bandwidth(engine.model.device.type)
    name, parameters = engine.model.name_or_path or "the model", engine.model.num_parameters()
    print(f"{name}: {si(parameters)} parameters; {engine.describe()}; reads memory at {bandwidth / 1e9:.1f} GB/s")
    results = []
    for speed in speeds(engine, quantize, bandwidth):
        print(speed)
        results.append(dataclasses.asdict(speed))
    record = {"model": name, "parameters": parameters, "engine": engine.describe(), "bandwidth": bandwidth}
    print(json.dumps({**record, "results": results}))


def speeds(engine: Engine, quantize: str | None, bandwidth: float, seconds: float = 5.0) -> Iterator[Speed]:
    """Yield the speed with 1 request and with 16, each measured for about so many seconds.

    Prompts are random tokens, new ones each time, so that nothing comes from the cache of prefixes; answers are sampled
    at temperature 1 and don't stop, so that a model seldom repeats itself and prompt lookup seldom helps.

    Args:
        engine: With nothing else to do.
        quantize: The format that the engine was made with.
        bandwidth: Of the memory, in bytes per second, as from `memory_bandwidth`.
        seconds: For each number of rows.
    """
    config = cast(NanoChatConfig, engine.model.config)
    prompt_tokens = min(PROMPT_TOKENS, engine.context_length // 2)
    new_tokens = min(NEW_TOKENS, engine.context_length - prompt_tokens)
    itemsize = engine.model.dtype.itemsize
    middle = prompt_tokens + new_tokens // 2
    for rows in ROWS:
        _answer(engine, rows, prompt_tokens, new_tokens)  # warm-up
        begun = time.perf_counter()
        runs: list[tuple[float, float]] = []
        while len(runs) < 3 or time.perf_counter() - begun < seconds:
            runs.append(_answer(engine, rows, prompt_tokens, new_tokens))
        first, speed = (statistics.median(values) for values in zip(*runs))
        keys_and_values = page_bytes(config, _itemsize(quantize, itemsize)) * middle / PAGE
        read = weight_bytes(config, quantize, itemsize) + rows * keys_and_values
        yield Speed(rows, prompt_tokens, first, speed, read * speed / rows / bandwidth)


def memory_bandwidth(device: str = "cpu") -> float:
    """Bytes per second at which a tensor far larger than the caches can be read: the best of several sums."""
    numbers = torch.zeros(PROBE_BYTES.get(device, PROBE_BYTES["cpu"]) // 8, dtype=torch.int64, device=device)
    seconds = []
    for _ in range(12):
        begun = time.perf_counter()
        numbers.sum().item()
        seconds.append(time.perf_counter() - begun)
    return numbers.nbytes / min(seconds)


def weight_bytes(config: NanoChatConfig, quantize: str | None, itemsize: int) -> float:
    """Weights that every step reads, in bytes: all but the embedding, in a format or in numbers of `itemsize` bytes."""
    bits = BITS[quantize] + 16 / GROUP if quantize in BITS else 8 * _itemsize(quantize, itemsize)
    return (parameter_counts(config)["matrices"] + config.vocab_size * config.hidden_size) * bits / 8


def _itemsize(quantize: str | None, itemsize: int) -> int:
    """Bytes of a number that is not rounded to whole numbers."""
    return {None: itemsize, "fp32": 4}.get(quantize, 2)


def _answer(engine: Engine, rows: int, prompt_tokens: int, new_tokens: int) -> tuple[float, float]:
    """Answer new random prompts; return the seconds to the first token and the tokens per second after it."""
    params = SamplingParams(max_new_tokens=new_tokens, temperature=1.0, stop_token_ids=())
    ordinary = len(engine.tokenizer) - len(engine.tokenizer.all_special_ids)
    prompts = [[random.randrange(ordinary) for _ in range(prompt_tokens)] for _ in range(rows)]
    requests = [engine.add(prompt, params) for prompt in prompts]
    while any(request.time_to_first_token is None for request in requests):
        engine.step()
    begun, before = time.perf_counter(), sum(request.completion_tokens for request in requests)
    while engine.has_work:
        engine.step()
    after = sum(request.completion_tokens for request in requests)
    speed = (after - before) / (time.perf_counter() - begun)
    return statistics.median(request.time_to_first_token or 0.0 for request in requests), speed
