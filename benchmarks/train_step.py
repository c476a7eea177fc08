"""Tokens per second of one whole training step (forward, backward, optimizer), against Transformers' NanoChat.

    python benchmarks/train_step.py            # the shape of issue 3 on two cores: 6 layers x 384, V 32768, 8 x 512
    python benchmarks/train_step.py --tables   # how the cost grows with vocabulary, context and depth (ours only)
    python benchmarks/train_step.py --cuda     # depth 12 and 20 in bf16 on a GPU

Every contender runs in a process of its own, one after the other, so that its peak memory is its own.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from harness import machine, peak_matmul, report

from nanochat.host import bfloat16_pays

SHAPE = {"depth": 6, "hidden_size": 384, "heads": 3, "vocab_size": 32768, "rows": 8, "seq_len": 512}
# In bf16 a step of the peers' takes minutes on processors without instructions for it: there they run in fp32 only.
DTYPES = ["float32", "bfloat16"] if bfloat16_pays("cuda" if torch.cuda.is_available() else "cpu") else ["float32"]
PEERS = [f"transformers {mode} {dtype}" for mode in ("eager", "compiled") for dtype in DTYPES]
FASTEST = DTYPES[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=9, help="measured steps of each contender; the median counts")
    parser.add_argument("--only", help="run the contenders whose name contains this")
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=json.loads, default=SHAPE, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(contend(arguments.contender, arguments.shape, arguments.steps)))
    elif arguments.tables:
        tables(arguments.steps)
    elif arguments.cuda:
        on_cuda(arguments.steps)
    else:
        against_peers(SHAPE, arguments.steps, arguments.only)


def against_peers(shape: dict, steps: int, only: str | None) -> None:
    names = [name for name in [*PEERS, "nanochat"] if only is None or only in name]
    facts, peak = machine(), peak_matmul(getattr(torch, FASTEST))
    results = {name: run(name, shape, steps) for name in names}
    lines = [
        f"{shape['depth']} layers x {shape['hidden_size']}, vocabulary {shape['vocab_size']}, "
        f"{shape['rows']} x {shape['seq_len']} tokens; {FASTEST} matmul peak {peak / 1e9:.0f} GFLOP/s (measured)"
    ]
    for name, result in results.items():
        result["share_of_peak"] = result["flops_per_second"] / peak
        lines.append(
            f"{name:30} {result['tokens_per_second']:7,.0f} tokens/s  {result['share_of_peak']:6.1%} of peak  "
            f"{result['peak_bytes'] / 1e9:5.2f} GB  first step {result['first_step_seconds']:5.1f} s"
        )
    peers = [result for name, result in results.items() if name != "nanochat"]
    summary = {}
    if peers and "nanochat" in results:
        best = max(peers, key=lambda result: result["tokens_per_second"])
        ours = results["nanochat"]
        summary = {
            "speed_ratio": ours["tokens_per_second"] / best["tokens_per_second"],
            "memory_ratio": ours["peak_bytes"] / best["peak_bytes"],
        }
        lines.append(
            f"against the best of theirs: {summary['speed_ratio']:.2f} x the speed (target 1.5), "
            f"{summary['memory_ratio']:.2f} x its memory (target 0.6)"
        )
    report("train_step", {"shape": shape, "peak_flops": peak, "machine": facts, "results": results, **summary},
           "\n".join(lines))  # fmt: skip


def run(name: str, shape: dict, steps: int) -> dict:
    command = [sys.executable, __file__, "--contender", name, "--shape", json.dumps(shape), "--steps", str(steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def contend(name: str, shape: dict, steps: int) -> dict:
    from nanochat.model.accounting import flops_per_token

    step_seconds, config, peak_bytes = (ours if name == "nanochat" else theirs)(name, shape, steps)
    tokens = shape["rows"] * shape["seq_len"]
    # On a GPU numbers are read a step late, and two lines come at once: what counts there is the whole time.
    middle = statistics.fmean if torch.cuda.is_available() else statistics.median
    seconds = middle(step_seconds[-steps:])
    return {
        "tokens_per_second": tokens / seconds,
        "flops_per_second": tokens / seconds * flops_per_token(config, shape["seq_len"]),
        "first_step_seconds": step_seconds[0],
        "step_seconds": step_seconds,
        "peak_bytes": peak_bytes,
    }


def ours(name: str, shape: dict, steps: int) -> tuple[list[float], object, int]:
    """The training loop of `nanochat pretrain`, its metrics.jsonl read."""
    from nanochat.data.batches import Batch
    from nanochat.model.modeling import NanoChatForCausalLM
    from nanochat.training.initialization import initialize_for_training
    from nanochat.training.loop import TrainingLoop
    from nanochat.training.memory import keep_freed_memory
    from nanochat.training.recipe import Recipe

    class Random:
        def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
            generator = torch.Generator().manual_seed(step)
            rows = torch.randint(shape["vocab_size"], (shape["rows"], shape["seq_len"] + 1), generator=generator)
            return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())

    keep_freed_memory()
    tokens = shape["rows"] * shape["seq_len"]
    made = Recipe.from_depth(
        shape["depth"], shape["vocab_size"], seq_len=shape["seq_len"], tokens=(steps + 4) * tokens, batch_tokens=tokens
    )
    assert (made.hidden_size, made.num_attention_heads) == (shape["hidden_size"], shape["heads"])
    model = NanoChatForCausalLM(made.config())
    initialize_for_training(model, 0)
    if torch.cuda.is_available():
        model.cuda()
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "metrics.jsonl"
        begun = time.monotonic()
        loop = TrainingLoop(model, Random(), made, stage="base", checkpoints=Path(folder) / "checkpoints",
                            metrics=metrics, save_model=model.save_pretrained, validate=dict)  # fmt: skip
        loop.run()
        print(f"{time.monotonic() - begun:.1f} s in all", file=sys.stderr)
        at = [0.0, *(json.loads(line)["seconds"] for line in metrics.read_text().splitlines())]
    return [later - earlier for earlier, later in itertools.pairwise(at)], model.config, peak_bytes()


def theirs(name: str, shape: dict, steps: int) -> tuple[list[float], object, int]:
    """Transformers' NanoChat with PyTorch's fused AdamW, as its users would write the step."""
    from transformers import NanoChatConfig, NanoChatForCausalLM

    _, mode, dtype = name.split()
    config = NanoChatConfig(
        vocab_size=shape["vocab_size"], hidden_size=shape["hidden_size"], intermediate_size=4 * shape["hidden_size"],
        num_hidden_layers=shape["depth"], num_attention_heads=shape["heads"], num_key_value_heads=shape["heads"],
        max_position_embeddings=shape["seq_len"],
    )  # fmt: skip
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = NanoChatForCausalLM(config).to(device)
    call = torch.compile(model) if mode == "compiled" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    seconds = []
    for step in range(steps + 3):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(shape["vocab_size"], (shape["rows"], shape["seq_len"]), generator=generator).to(device)
        begun = time.monotonic()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = call(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.monotonic() - begun)
    return seconds, model.config, peak_bytes()


def peak_bytes() -> int:
    """Most memory of this process so far: of the GPU where there is one, else resident, Python itself included."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tables(steps: int) -> None:
    """How the cost of a step grows, one dimension at a time; about 4,096 tokens a step."""
    facts, peak = machine(), peak_matmul(getattr(torch, FASTEST))
    rows: list[tuple[str, dict]] = []
    rows += [(f"vocabulary {size}", {**SHAPE, "vocab_size": size}) for size in (4096, 8192, 16384, 32768, 65536)]
    rows += [
        (f"context {size}", {**SHAPE, "seq_len": size, "rows": 4096 // size}) for size in (256, 512, 1024, 2048, 4096)
    ]
    rows += [(f"depth {depth}", shape_of(depth, 32768, 512, 8)) for depth in (2, 4, 6, 8)]
    results, lines = {}, [f"{'':18} tokens/s  share of the {FASTEST} peak ({peak / 1e9:.0f} GFLOP/s)  memory"]
    for name, shape in rows:
        results[name] = result = {"shape": shape, **run("nanochat", shape, steps)}
        lines.append(
            f"{name:18} {result['tokens_per_second']:8,.0f}  {result['flops_per_second'] / peak:13.1%}"
            f"  {result['peak_bytes'] / 1e9:21.2f} GB"
        )
    report("train_step-tables", {"peak_flops": peak, "machine": facts, "results": results}, "\n".join(lines))


def on_cuda(steps: int) -> None:
    """Depth 12 and 20 in bf16 against Transformers' NanoChat, compiled: tokens/s and MFU."""
    facts, peak = machine(), peak_matmul(getattr(torch, FASTEST))
    results, lines = {}, [f"{facts['gpu']}: bf16 matmul peak {peak / 1e12:.0f} TFLOP/s (measured)"]
    for depth in (12, 20):
        shape = shape_of(depth, 65536, 2048, 16)
        for name in ("nanochat", "transformers compiled bfloat16"):
            results[f"{name}, depth {depth}"] = result = run(name, shape, steps)
            lines.append(
                f"depth {depth}, {name:30} {result['tokens_per_second']:9,.0f} tokens/s  "
                f"{result['flops_per_second'] / peak:6.1%} of peak  {result['peak_bytes'] / 1e9:6.1f} GB"
            )
    report("train_step-cuda", {"peak_flops": peak, "machine": facts, "results": results}, "\n".join(lines))


def shape_of(depth: int, vocab_size: int, seq_len: int, rows: int) -> dict:
    """The shape that `--depth` gives."""
    from nanochat.training.recipe import Recipe

    made = Recipe.from_depth(depth, vocab_size, seq_len=seq_len)
    sizes = {"hidden_size": made.hidden_size, "heads": made.num_attention_heads}
    return {"depth": depth, **sizes, "vocab_size": vocab_size, "rows": rows, "seq_len": seq_len}


if __name__ == "__main__":
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    main()
