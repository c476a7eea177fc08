"""Do the recipe's learning rates carry over from one depth to another?

    python benchmarks/depth_sweep.py   # three minutes on two cores; ten where there are no bf16 instructions

Models of several depths, each trained on the same text by the recipe of its depth with all learning rates multiplied by
the same factors. The rates carry over if every depth is best near factor 1. Writes a plot beside the results.
"""

import argparse
import tempfile
import time
from pathlib import Path

import harness
from matplotlib.figure import Figure
from one_run import train
from time_to_loss import corpus_data

DEPTHS = (1, 2, 4)
FACTORS = (0.5, 1.0, 2.0)
VOCAB_SIZE, SEQ_LEN, BATCH_TOKENS = 4096, 256, 1024
RATES = ("matrix_lr", "embedding_lr", "head_lr")


def main() -> None:
    from nanochat.training.recipe import Recipe

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80)
    steps = parser.parse_args().steps
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = corpus_data(Path(folder), "text", False)
        for depth in DEPTHS:
            recipe = Recipe.from_depth(depth, VOCAB_SIZE, seq_len=SEQ_LEN, tokens=steps * BATCH_TOKENS)
            shape = {"layers": depth, "width": recipe.hidden_size, "heads": recipe.num_attention_heads}
            rest = {"vocab_size": VOCAB_SIZE, "seq_len": SEQ_LEN, "rows": BATCH_TOKENS // SEQ_LEN, "steps": steps}
            results[f"depth {depth}"] = {}
            for factor in FACTORS:
                rates = {name: factor * getattr(recipe, name) for name in RATES}
                run = {**shape, **rest, **rates, "data": str(data), "seed": 0, "launched": time.time()}
                results[f"depth {depth}"][str(factor)] = value = train(run)["value"]
                print(f"depth {depth}, rates times {factor}: {value:.4f} bits per byte", flush=True)
    lines = [f"bits per byte of held-out text after {steps} steps; all rates times " + ", ".join(map(str, FACTORS))]
    lines += [f"{name}: " + "  ".join(f"{value:.4f}" for value in values.values()) for name, values in results.items()]
    plot(results).savefig(harness.RESULTS / "depth_sweep.png", dpi=110)
    harness.report("depth_sweep", {"steps": steps, "results": results}, "\n".join(lines))


def plot(results: dict[str, dict[str, float]]) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, values in results.items():
        axes.plot([float(factor) for factor in values], list(values.values()), "o-", label=name)
    axes.set(xscale="log", xlabel="all learning rates times", ylabel="held-out bits per byte")
    axes.set_xticks(FACTORS, [f"{factor:g}" for factor in FACTORS])
    axes.minorticks_off()
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
