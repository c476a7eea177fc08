"""Wall-clock to a validation loss: our training loop against Transformers' NanoChat with PyTorch's fused AdamW.

    python benchmarks/time_to_loss.py                     # all three parts, up to five seeds: an hour on two cores
    python benchmarks/time_to_loss.py --part shakespeare  # tinyshakespeare by bytes, nanoGPT's CPU shape
    python benchmarks/time_to_loss.py --part text         # real text; --part primer: the Primer's documents
    python benchmarks/time_to_loss.py --part sweep        # the peer's rates and batches on the text, a third as long
    python benchmarks/time_to_loss.py --quick             # some steps of tiny models: does the script still work?

Every run is a process of its own with an empty compiler cache. The clock starts before the model is built and counts
all that follows, compilation included, but validation (the same documents and function for both sides, in fp32). Not
counted: starting Python, imports, opening the tokenized text; `from launch` counts those too. How many steps fit into
the time that a run is given is measured beforehand by a short one, which also finds the peer's fastest mode.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import harness
from one_run import train

SHARED_TEXT = Path(__file__).parents[2] / "shared/data/text"
VALIDATION_TOKENS = 2**16  # of a corpus; of tinyshakespeare, all that is held out
PROBE_STEPS = 12
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME")  # the latter: of our kernels in C
PEER_MODES = [{"compiled": compiled, "dtype": dtype} for compiled in (False, True) for dtype in ("float32", "bfloat16")]

# A run is given `seconds`, or `steps`. What is not a rate of ours is what `Recipe.from_depth` says.
NANOGPT = {"loss": 1.886, "seconds": 104}  # ../shared/REFERENCE.md: measured earlier on this kind of machine
BYTES = {"layers": 4, "width": 128, "heads": 4, "vocab_size": 265, "seq_len": 64}
# Chosen by some 17 short runs of seed 0 on the same held-out text (docs/log.md), so they flatter a little.
OURS_ON_BYTES = {"rows": 32, "matrix_lr": 0.05, "head_lr": 0.05, "embedding_lr": 0.4}
SHAKESPEARE = {
    "nanochat": {"seconds": 20, **BYTES, **OURS_ON_BYTES},
    "nanochat, nanoGPT's time": {"seconds": 103, "most_seeds": 1, **BYTES, **OURS_ON_BYTES, "matrix_lr": 0.03},
    # nanoGPT's published settings for a CPU, which nobody tuned for this model.
    "transformers": {
        "steps": 2000,
        "most_seeds": 1,
        **BYTES,
        "rows": 12,
        "lr": 1e-3,
        "warmup": 100,
        "betas": [0.9, 0.99],
        "weight_decay": 0.1,
    },
}
PEER_SECONDS = 120
CORPORA: dict[str, dict[str, Any]] = {
    "text": {
        "source": f"{SHARED_TEXT / 'standardebooks'},{SHARED_TEXT / 'simple_stories'}",
        "shape": {"layers": 4, "width": 256, "heads": 2, "vocab_size": 4096, "seq_len": 512},
        "ours": {"rows": 8},
        "theirs": {},
    },
    "primer": {
        "source": "primer",
        "shape": {"layers": 4, "width": 256, "heads": 2, "vocab_size": 2048, "seq_len": 256},
        # Several documents to a row: ours reads each for itself, as it does on a CPU, and is judged that way. Theirs is
        # judged both ways, and the better one counts.
        "ours": {"rows": 8, "within_documents": True, "judged_alone": [True]},
        "theirs": {"judged_alone": [False, True]},
    },
}
ADAMW = {"lr": 2e-3, "betas": [0.9, 0.95], "weight_decay": 0.1}
# By the sweep: smaller batches are better, and so are higher rates in its short runs; in the long one 4e-3 was worse.
PEER_BATCH_TOKENS = 2048
SWEEP = {
    f"batches of {batch_tokens}, rate {lr:g}": {"batch_tokens": batch_tokens, "lr": lr}
    for batch_tokens, lr in ((4096, 1e-3), (4096, 2e-3), (4096, 4e-3), (4096, 8e-3), (2048, 2e-3), (8192, 4e-3))
}
QUICK_SHAPE = {"layers": 1, "width": 32, "heads": 2, "seq_len": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["shakespeare", *CORPORA, "sweep"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--run", type=json.loads, help=argparse.SUPPRESS)  # what this process is to do
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(train(arguments.run)))
        return
    facts = harness.machine()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), 1 if arguments.quick else arguments.seeds, arguments.quick)
        if arguments.quick:
            harness.RESULTS = Path(folder)  # nothing worth keeping
        parts = {name: bench.part(name) for name in ([arguments.part] if arguments.part else ["shakespeare", *CORPORA])}
    name = f"time_to_loss-{arguments.part}" if arguments.part else "time_to_loss"
    card = "\n\n".join(part.pop("card") for part in parts.values())
    harness.report(name, {"machine": facts, "seeds": bench.seeds, "parts": parts}, card)


@dataclasses.dataclass
class Bench:
    """The parent of all runs: prepares data in `folder`, finds horizons, runs every contender once per seed."""

    folder: Path
    seeds: int
    quick: bool

    def part(self, name: str) -> dict[str, Any]:
        """The results of a part, with a `card` for people."""
        source = SHARED_TEXT / "tinyshakespeare" if name == "shakespeare" else SHARED_TEXT / "standardebooks"
        if name != "primer" and not source.exists():
            return {"skipped": f"{source} is not here", "card": f"{name}: skipped, {source} is not here"}
        return {"shakespeare": self.shakespeare, "sweep": self.sweep}.get(name, lambda: self.corpus(name))()

    def shakespeare(self) -> dict[str, Any]:
        data = shakespeare_data(self.folder / "shakespeare")
        results = {name: self.runs(run, data) for name, run in SHAKESPEARE.items()}
        target = NANOGPT["loss"]
        heading = (
            f"tinyshakespeare by bytes, 4 x 128, rows of 64: nats per byte of all held-out text; nanoGPT's CPU recipe "
            f"reached {target} after {NANOGPT['seconds']} s (measured earlier)"
        )
        return {"target": target, "results": results, "card": card(heading, results, target)}

    def corpus(self, name: str) -> dict[str, Any]:
        data = corpus_data(self.folder / name, name, self.quick)
        corpus = CORPORA[name]
        shape = corpus["shape"]
        peer = {"seconds": PEER_SECONDS, "most_seeds": 1, **shape, **peer_batches(shape), **corpus["theirs"]}
        results = {"transformers": self.runs(peer, data)}
        [best] = results["transformers"]["runs"]
        target = best["value"]
        ours = {"seconds": 0.33 * best["seconds"], **shape, **corpus["ours"]}
        results["nanochat"] = self.runs(ours, data)
        heading = f"{name}: bits per byte of held-out text; the target is the peer's at its end, {target:.4f}"
        return {"target": target, "results": results, "card": card(heading, results, target)}

    def sweep(self) -> dict[str, Any]:
        data, shape, results = corpus_data(self.folder / "text", "text", self.quick), CORPORA["text"]["shape"], {}
        mode: dict[str, Any] = {}
        for name, chosen in SWEEP.items():
            run = {"seconds": PEER_SECONDS / 3, **shape, **peer_batches(shape, **chosen), **mode}
            results[name] = self.runs({**run, "most_seeds": 1}, data)
            mode = {key: results[name]["run"][key] for key in ("compiled", "dtype")}  # the first probe is for all
        return {"results": results, "card": card("the peer's settings on the text", results, -math.inf)}

    def runs(self, run: dict[str, Any], data: Path) -> dict[str, Any]:
        """A contender's `run` with the horizon and mode found for it, and the results of its `runs`."""
        if self.quick:
            run = {**run, **QUICK_SHAPE, "steps": 5, **(PEER_MODES[0] if "lr" in run else {})}
        elif "steps" not in run or ("lr" in run and "compiled" not in run):
            run = self.probed(run, data)
        seeds = min(self.seeds, run.get("most_seeds", self.seeds))
        return {"run": run, "runs": [self.launch(run, data, seed) for seed in range(seeds)]}

    def probed(self, run: dict[str, Any], data: Path) -> dict[str, Any]:
        """The run with as many steps as its seconds allow, in the fastest of the peer's modes if it is the peer."""
        best: tuple[float, dict[str, Any]] | None = None
        for mode in PEER_MODES if "lr" in run and "compiled" not in run else [{}]:
            tried = {**run, **mode}
            probe = self.launch({**tried, "steps": PROBE_STEPS, "probe": True}, data, seed=0)
            step = statistics.median(later - earlier for earlier, later in zip(probe["marks"][2:], probe["marks"][3:]))
            setup = probe["marks"][-1] - PROBE_STEPS * step  # building and compiling
            steps = run["steps"] if "steps" in run else max(1, int((run["seconds"] - setup) / step))
            found = {**tried, "steps": steps, "probed": {"setup_seconds": setup, "step_seconds": step}}
            score = -(setup + steps * step) if "steps" in run else steps
            print(f"probed {mode}: {setup:.1f} s and {step * 1000:.1f} ms a step", file=sys.stderr)
            if best is None or score > best[0]:
                best = score, found
        assert best is not None
        return best[1]

    def launch(self, run: dict[str, Any], data: Path, seed: int) -> dict[str, Any]:
        """One run in a process of its own, its compiler's cache empty."""
        with tempfile.TemporaryDirectory() as cache:
            order = {**run, "data": str(data), "seed": seed, "launched": time.time()}
            done = subprocess.run(
                [sys.executable, __file__, "--run", json.dumps(order)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                env={"GOMP_SPINCOUNT": "20000", **os.environ, **dict.fromkeys(CACHES, cache)},
            )
        result = json.loads(done.stdout.splitlines()[-1])
        print(f"seed {seed}: {result['seconds']:.1f} s, {result['value']:.4f}", file=sys.stderr)
        return result


def peer_batches(shape: dict[str, Any], batch_tokens: int = PEER_BATCH_TOKENS, **chosen: Any) -> dict[str, Any]:
    return {**ADAMW, "rows": batch_tokens // shape["seq_len"], **chosen}


def shakespeare_data(folder: Path) -> Path:
    """nanoGPT's split (the first nine tenths, and the rest) by the tokenizer without merges: an id is a byte."""
    from nanochat.tokenizer import NanoChatTokenizer

    tokenizer = NanoChatTokenizer.from_ranks({bytes([byte]): byte for byte in range(256)})
    text = (SHARED_TEXT / "tinyshakespeare/input.txt").read_text()
    border = int(0.9 * len(text))
    for split, part in (("train", text[:border]), ("val", text[border:])):
        write_store(folder / split, [(tokenizer.encode_ordinary_batch([part])[0], None)], tokenizer, None)
    return folder


def corpus_data(folder: Path, name: str, quick: bool) -> Path:
    """A corpus by a tokenizer trained on its beginning; held-out documents as `nanochat pretrain` holds them out."""
    from nanochat.data.sources import read_documents
    from nanochat.data.tokenization import tokenize_documents
    from nanochat.tokenizer import train_tokenizer

    source, vocab_size = CORPORA[name]["source"], CORPORA[name]["shape"]["vocab_size"]
    tokenizer = train_tokenizer(islice(read_documents(source, "train"), 100 if quick else 5000), vocab_size)
    for split, tokens in (("train", 2**15 if quick else 2**24), ("val", 2**12 if quick else VALIDATION_TOKENS)):
        write_store(folder / split, tokenize_documents(read_documents(source, split), tokenizer), tokenizer, tokens)
    return folder


def write_store(folder: Path, documents: Any, tokenizer: Any, max_tokens: int | None) -> None:
    import numpy as np

    from nanochat.data.store import TokenStore

    TokenStore.write(folder, documents, len(tokenizer), max_tokens=max_tokens)
    np.save(folder / "token_bytes.npy", tokenizer.token_bytes())


def card(heading: str, results: dict[str, Any], target: float) -> str:
    """A line for every contender: medians over the seeds and, in brackets, the extremes."""
    lines = [heading]
    for name, result in results.items():
        runs, run = result["runs"], result["run"]
        reached = [seconds for seconds in (seconds_to(target, one["curve"]) for one in runs) if seconds is not None]
        mode = f"{'compiled' if run['compiled'] else 'eager'} {run['dtype']}, " if "compiled" in run else ""
        lines.append(
            f"{name:36} {spread([one['seconds'] for one in runs], 1)} s, "
            f"from launch {statistics.median(one['seconds_from_launch'] for one in runs):.1f} s: "
            f"{spread([one['value'] for one in runs], 4)}; {mode}{run['steps']} steps of {run['rows']} rows"
        )
        if reached:
            lines.append(f"{'':36} target reached by {len(reached)} of {len(runs)}, in {spread(reached, 1)} s")
    return "\n".join(lines)


def seconds_to(target: float, curve: list[tuple[int, float, float]]) -> float | None:
    """When a run's validation first was at or below the target."""
    return next((seconds for _, seconds, value in curve if value <= target), None)


def spread(values: list[float], digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    main()
