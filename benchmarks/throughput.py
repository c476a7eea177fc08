"""Tokens per second of 16 requests of mixed lengths: prompts of 32 to 256 tokens, 64 new tokens each.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --under "taskset -c 0,1"     # each contender's process under another command

Every contender runs in a process of its own. Transformers twice: `generate` with the prompts padded on the left to the
longest, and `generate_batch`, its continuous batching. Prompts are new in every repeat; all requests come at once.
"""

import argparse
import json
import random
from typing import Any

from contenders import (
    LLAMA,
    OURS,
    SHAPE,
    available,
    contender,
    in_a_process,
    random_prompts,
    repeated,
    seconds_of,
    spread,
)
from harness import machine, report

ROWS, SHORTEST, LONGEST, NEW_TOKENS = 16, 32, 256, 64
SECONDS = 5.0
MODES = ("dynamic", "generate_batch")
THEIRS = tuple(f"transformers {mode} {dtype}" for mode in MODES for dtype in ("fp32", "bf16"))
TARGETS = {"transformers generate_batch": 10.0, "transformers dynamic": 2.5}  # of ours in bf16, by theirs in bf16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the contenders whose name contains this; no result is kept")
    parser.add_argument("--under", default="", help="a command to run each contender under")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(contend(arguments.contender)))
        return
    facts = machine()
    names = [name for name in available((*THEIRS, *LLAMA, *OURS)) if arguments.only in name]
    results = {name: in_a_process(__file__, name, under=arguments.under) for name in names}
    lines = [
        f"{ROWS} requests, prompts of {SHORTEST} to {LONGEST} tokens, {NEW_TOKENS} new tokens each, "
        f"{SHAPE['layers']} layers x {SHAPE['hidden_size']}, vocabulary {SHAPE['vocab_size']}: new tokens/s"
    ]
    lines += [
        f"{name:32} {result['median']:7,.0f}  "
        f"({result['min']:,.0f} to {result['max']:,.0f}, {result['repeats']} repeats)"
        for name, result in results.items()
    ]
    if not arguments.only:
        lines += comparisons(results)
        report("throughput", {"shape": SHAPE, "machine": facts, "results": results}, "\n".join(lines))
    else:
        print("\n".join(lines))


def contend(name: str) -> dict[str, Any]:
    """New tokens per second of all requests together, from the call to the last token."""
    answer = contender(name, SHAPE)

    def speed() -> float:
        prompts = mixed_prompts()
        return ROWS * NEW_TOKENS / seconds_of(lambda: answer(prompts, NEW_TOKENS))

    warm_up = speed()
    slow = ROWS * NEW_TOKENS / warm_up > SECONDS
    speeds = list(repeated(speed, SECONDS, least=2 if slow else 3))
    return {**spread(speeds), "repeats": len(speeds)}


def mixed_prompts() -> list[list[int]]:
    """Lengths evenly from the shortest to the longest, the same in every repeat, in random order."""
    lengths = [SHORTEST + row * (LONGEST - SHORTEST) // (ROWS - 1) for row in range(ROWS)]
    random.shuffle(lengths)
    return [random_prompts(1, length, SHAPE["vocab_size"])[0] for length in lengths]


def comparisons(results: dict[str, Any]) -> list[str]:
    """Ours in bf16 against theirs in bf16, and against the better of theirs."""
    ours, lines = results["nanochat bf16"]["median"], []
    for name, target in TARGETS.items():
        plain = results[f"{name} bf16"]["median"]
        best = max(plain, results[f"{name} fp32"]["median"])
        lines.append(
            f"nanochat bf16: {ours / plain:.1f} x {name} bf16 (target {target}), {ours / best:.1f} x its better dtype"
        )
    return lines


if __name__ == "__main__":
    main()
