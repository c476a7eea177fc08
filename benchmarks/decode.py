"""Tokens per second of one stream and of sixteen, prefill, and how the cost of a token grows with the context.

    python benchmarks/decode.py                              # 8 layers x 512, vocabulary 32768, on the CPU
    python benchmarks/decode.py --depth 20 --device cuda     # on a GPU
    python benchmarks/decode.py --under "taskset -c 0,1"     # each contender's process under another command

Every contender runs in a process of its own. Decoding is timed from outside: the time of a call for 1 + N new tokens
less that of a call for 1, each with new random prompts, in turn. A call for 1 new token is the prefill. What takes a
contender more than `SLOW` seconds a call is left out ("-" in the table).
"""

import argparse
import json
import statistics
import sys
import time
from typing import Any

import torch
from contenders import (
    CONTEXT,
    LLAMA,
    OURS,
    SHAPE,
    Answer,
    available,
    contender,
    in_a_process,
    our_engine,
    random_prompts,
    repeated,
    seconds_of,
    spread,
)  # fmt: skip
from harness import machine, peak_matmul, report

from nanochat.host import bfloat16_pays
from nanochat.inference.bench import memory_bandwidth

SETTINGS = ((1, 128), (1, 512), (1, 1024), (1, 2048), (16, 128), (16, 1024))  # rows, tokens of each prompt
FEWER = ((1, 128), (1, 1024), (16, 128))  # for all but Transformers' dynamic cache and our engine
NEW_TOKENS = {1: 128, 16: 64}  # by rows
SECONDS = {"cpu": 4.0, "cuda": 1.0}
SLOW = 20.0
THEIRS = tuple(f"transformers {mode} {dtype}" for mode in ("dynamic", "static") for dtype in ("fp32", "bf16"))
OUR_GENERATE = ("nanochat generate fp32", "nanochat generate bf16")
ON_CUDA = ("transformers dynamic bf16", "transformers compiled bf16", *OURS[1:])
BITS = {
    "fp32": 32,
    "bf16": 16,
    "f16": 16,
    "int8": 8.5,
    "q8_0": 8.5,
    "int4": 4.5,
    "q4_0": 4.5,
}  # of a weight, with scales
PLAIN = "transformers dynamic bf16"  # what the targets are multiples of
# at the same bits
PEER = {"nanochat bf16": "llama.cpp bf16", "nanochat int8": "llama.cpp q8_0", "nanochat int4": "llama.cpp q4_0"}
TARGETS = {"nanochat bf16": 4.0, "nanochat int8": 6.5, "nanochat int4": 10.0, "nanochat generate bf16": 2.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the contenders whose name contains this; no result is kept")
    parser.add_argument("--under", default="", help="a command to run each contender under")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--depth", type=int, help="the model that nanochat's --depth makes, vocabulary 65536")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("Nothing measured: PyTorch finds no CUDA GPU here.")
    shape = shape_of(arguments.depth) if arguments.depth else SHAPE
    if arguments.contender:
        print(json.dumps(contend(arguments.contender, shape, arguments.device)))
        return
    facts = machine()
    names = available((*THEIRS, *LLAMA, *OUR_GENERATE, *OURS) if arguments.device == "cpu" else ON_CUDA)
    names = [name for name in names if arguments.only in name]
    options = ["--device", arguments.device, *(["--depth", str(arguments.depth)] if arguments.depth else [])]
    results = {name: in_a_process(__file__, name, *options, under=arguments.under) for name in names}
    limits = {
        limit: max(result["limits"][limit] for result in results.values()) for limit in ("bandwidth", "matmul_flops")
    }
    card = "\n".join([*table(shape, limits, results), *comparisons(results, arguments.device)])
    if arguments.only:
        print(card)
    else:
        name = "decode" if arguments.device == "cpu" else f"decode-cuda-depth-{arguments.depth}"
        report(name, {"shape": shape, "machine": facts, "limits": limits, "results": results}, card)


def contend(name: str, shape: dict[str, int], device: str) -> dict[str, Any]:
    """All settings of one contender; the machine's limits right before."""
    dtype = torch.bfloat16 if bfloat16_pays(device) else torch.float32
    limits = {"bandwidth": memory_bandwidth(device), "matmul_flops": peak_matmul(dtype)}
    answer = contender(name, shape, device)
    settings: dict[str, Any] = {}
    for rows, length in settings_of(name, device):
        result = measure(answer, shape["vocab_size"], rows, length, SECONDS[device])
        if result:
            settings[f"{rows} x {length}"] = result
    ours = {"second_turn": second_turn(name, shape, device)} if name in OURS else {}
    return {"limits": limits, "settings": settings, **ours}


def settings_of(name: str, device: str) -> tuple[tuple[int, int], ...]:
    """Rows and prompt lengths for a contender."""
    if name in OURS or (device == "cpu" and name.startswith("transformers dynamic")):
        return SETTINGS
    return FEWER[:2] if "compiled" in name else FEWER  # it compiles for minutes for each size of batch


def measure(answer: Answer, vocab_size: int, rows: int, length: int, least_seconds: float) -> dict[str, Any] | None:
    """Prefill and decoding of `rows` prompts of `length` tokens; None if a call takes too long."""
    new_tokens = NEW_TOKENS[rows]

    def seconds(count: int) -> float:
        prompts = random_prompts(rows, length, vocab_size)
        return seconds_of(lambda: answer(prompts, count))

    begun = time.perf_counter()
    if rows > 1 and rows * seconds_of(lambda: answer(random_prompts(1, length, vocab_size), 1)) > SLOW:
        return None
    seconds(1 + new_tokens)  # warm-up
    least = 3 if time.perf_counter() - begun < 4 else 1
    pairs = list(repeated(lambda: (seconds(1), seconds(1 + new_tokens)), least_seconds, least))
    per_step = statistics.median((long - short) / new_tokens for short, long in pairs)
    return {
        "prefill_seconds": spread([short for short, _ in pairs]),
        "seconds_per_step": per_step,
        "tokens_per_second": rows / per_step,
        "repeats": len(pairs),
    }


def second_turn(name: str, shape: dict[str, int], device: str) -> dict[str, float]:
    """Seconds to the first token of the first turn, after 1,000 tokens, and of the second, 24 tokens later."""
    from nanochat.inference import SamplingParams

    engine = our_engine(shape, name.split()[-1], device)
    params = SamplingParams(max_new_tokens=64, stop_token_ids=())

    def turn(prompt: list[int]) -> tuple[float, list[int]]:
        begun = time.perf_counter()
        deltas = engine.stream(prompt, params)
        first = next(deltas)
        seconds = time.perf_counter() - begun
        return seconds, [token.id for delta in (first, *deltas) for token in delta.tokens]

    firsts, seconds = [], []
    for _ in range(6):
        [history], [question] = (random_prompts(1, count, shape["vocab_size"]) for count in (1000, 24))
        took, reply = turn(history)
        firsts.append(took)
        seconds.append(turn([*history, *reply, *question])[0])
    first, second = (statistics.median(values[1:]) for values in (firsts, seconds))
    return {"first_turn_seconds": first, "second_turn_seconds": second, "ratio": second / first}


def table(shape: dict[str, int], limits: dict[str, float], results: dict[str, Any]) -> list[str]:
    """Tokens per second in every setting, and the share of the memory bandwidth that one stream reaches."""
    lines = [
        f"{shape['layers']} layers x {shape['hidden_size']}, vocabulary {shape['vocab_size']}, random weights, greedy",
        f"limits measured: memory read at {limits['bandwidth'] / 1e9:.1f} GB/s, matrices multiplied at "
        f"{limits['matmul_flops'] / 1e9:.0f} GFLOP/s",
        f"{'decode, tokens/s':27}" + "".join(f"{rows:>4} x {length:<5}" for rows, length in SETTINGS)
        + "  of bandwidth (1 x 128)  prefill of 1024: tokens/s, of matmul peak",
    ]  # fmt: skip
    for name, result in results.items():
        cells = [result["settings"].get(f"{rows} x {length}") for rows, length in SETTINGS]
        speeds = "".join(f"{cell['tokens_per_second']:9,.0f}  " if cell else f"{'-':>9}  " for cell in cells)
        prefill = 1024 / result["settings"]["1 x 1024"]["prefill_seconds"]["median"]
        lines.append(
            f"{name:27}{speeds}{bandwidth_share(name, shape, limits, result):11.0%}"
            f"{prefill:22,.0f}{prefill * prefill_flops(shape) / 1024 / limits['matmul_flops']:8.0%}"
        )
    return lines


def comparisons(results: dict[str, Any], device: str) -> list[str]:
    """Ours against theirs, with the targets for a CPU."""
    if PLAIN not in results or "nanochat bf16" not in results:
        return []

    def speed(name: str, setting: str = "1 x 128") -> float:
        return results[name]["settings"][setting]["tokens_per_second"]

    def prefill(name: str) -> float:
        return 1024 / results[name]["settings"]["1 x 1024"]["prefill_seconds"]["median"]

    theirs = [name for name in results if name.startswith("transformers")]
    best, best_prefill = max(theirs, key=speed), max(theirs, key=prefill)
    lines = [f"against {PLAIN} (and {best}, the best of theirs), 1 x 128:"]
    for name in results:
        if not name.startswith("nanochat"):
            continue
        target = f" (target {TARGETS[name]})" if name in TARGETS and device == "cpu" else ""
        peer = PEER.get(name, "")
        lines.append(
            f"  {name}: {speed(name) / speed(PLAIN):5.1f} x{target}, {speed(name) / speed(best):5.1f} x the best"
            + (f", {speed(name) / speed(peer):.2f} x {peer}" if peer in results else "")
        )
    ours = [name for name in OURS if name in results]
    fastest = max(ours, key=prefill)
    lines.append(
        f"prefill of 1024: {fastest} {prefill(fastest) / prefill(best_prefill):.2f} x {best_prefill} (target 1.2), "
        f"{prefill('nanochat bf16') / prefill(PLAIN):.1f} x for bf16 both"
    )
    for name in ours:
        turn = results[name]["second_turn"]
        per_token = [1e3 / speed(name, f"1 x {length}") for length in (128, 512, 1024, 2048)]
        lines.append(
            f"{name}: milliseconds per token at a context of 128, 512, 1024, 2048: "
            + ", ".join(f"{milliseconds:.2f}" for milliseconds in per_token)
            + f"; second turn {turn['second_turn_seconds'] * 1e3:.0f} ms, {turn['ratio']:.1%} of the first (bar 10 %)"
        )
    return lines


def bandwidth_share(name: str, shape: dict[str, int], limits: dict[str, float], result: dict[str, Any]) -> float:
    """Bytes that each token must read (weights but the embedding, keys and values) per second, of the bandwidth."""
    format = name.split()[-1]
    C, layers = shape["hidden_size"], shape["layers"]
    weights = 12 * layers * C**2 + C * shape["vocab_size"]
    positions = 128 + NEW_TOKENS[1] / 2
    cache = positions * 2 * layers * C * (4 if format == "fp32" else 2)
    read = weights * BITS[format] / 8 + cache
    return read * result["settings"]["1 x 128"]["tokens_per_second"] / limits["bandwidth"]


def prefill_flops(shape: dict[str, int], length: int = 1024) -> float:
    """Floating-point operations for a prompt whose last token alone goes through the output head."""
    C = shape["hidden_size"]
    matrices = 2 * 12 * shape["layers"] * C**2 * length
    attention = 2 * shape["layers"] * C * length**2  # two products over half of the square
    return matrices + attention + 2 * C * shape["vocab_size"]


def shape_of(depth: int) -> dict[str, int]:
    """The model that `--depth` makes."""
    from nanochat.training.recipe import Recipe

    made = Recipe.from_depth(depth, 65536, seq_len=CONTEXT)
    sizes = {"hidden_size": made.hidden_size, "heads": made.num_attention_heads}
    return {"layers": depth, **sizes, "vocab_size": 65536}


if __name__ == "__main__":
    main()
