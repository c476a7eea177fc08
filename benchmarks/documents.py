"""Does it pay, in pretraining, to keep attention within a document where a row holds several?

    python benchmarks/documents.py   # two or three minutes on two cores

Two models for each corpus, alike but for that. Both are judged as they will be used: a held-out document is
predicted without a view of the one before it.
"""

import argparse
import tempfile
import time
from pathlib import Path

import harness
from one_run import train
from time_to_loss import CORPORA, corpus_data

SHAPE = {"layers": 2, "width": 128, "heads": 1, "seq_len": 256, "rows": 8}
WAYS = {"across documents": False, "within documents": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120)
    steps = parser.parse_args().steps
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in CORPORA:
            data, vocab_size = corpus_data(Path(folder) / name, name, False), CORPORA[name]["shape"]["vocab_size"]
            run = {**SHAPE, "vocab_size": vocab_size, "judged_alone": [True], "steps": steps, "seed": 0}
            run |= {"data": str(data), "launched": time.time()}
            results[name] = {way: train({**run, "within_documents": on})["value"] for way, on in WAYS.items()}
    lines = [f"bits per byte of held-out documents after {steps} steps of 2,048 tokens, 2 layers x 128"]
    lines += [
        f"{name}: " + ", ".join(f"{way} {value:.4f}" for way, value in values.items())
        for name, values in results.items()
    ]
    harness.report("documents", {"steps": steps, "results": results}, "\n".join(lines))


if __name__ == "__main__":
    main()
