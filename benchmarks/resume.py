"""What a kill costs: a run is killed with SIGKILL at random moments, in the middle of saves too, and resumed each time.

Its loss curve and final weights are compared, bit by bit, with those of the same run left alone.

    python benchmarks/resume.py --kills 20
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from harness import report

DEPTH, STEPS, BATCH_TOKENS, SEQ_LEN = 2, 400, 512, 128
CHECKPOINT_SECONDS = 0.3  # not the 30 of a real run, which takes hours; so that a few minutes hold many saves
# The command line, but for how often it saves.
PROGRAM = f"""
import sys
from nanochat.training import loop
loop.CHECKPOINT_SECONDS = {CHECKPOINT_SECONDS}
from nanochat.cli import main
sys.argv[0] = "nanochat"
main()
"""


def start(run: Path, resume: bool) -> subprocess.Popen[bytes]:
    """Pretrain on the Primer in a process of its own, or go on with it."""
    options = ["--resume"] if resume else [
        *("--depth", DEPTH, "--vocab-size", 1024, "--seq-len", SEQ_LEN, "--batch-tokens", BATCH_TOKENS),
        *("--tokens", STEPS * BATCH_TOKENS),
    ]  # fmt: skip
    command = [sys.executable, "-c", PROGRAM, "pretrain", "--run", run, *options]
    quiet = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, env=quiet)


def records(run: Path) -> list[dict[str, Any]]:
    """What `metrics.jsonl` holds by now, but for a line that is half written."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def wait_for_step(process: subprocess.Popen[bytes], run: Path, step: int) -> None:
    """Return once the step is recorded; the process must not end before."""
    while len(records(run)) <= step:
        assert process.poll() is None, f"the run ended by itself, with code {process.returncode}"
        time.sleep(0.005)


def saving(run: Path) -> bool:
    """Whether a checkpoint is half written; after a kill, whether it came in the middle of a save."""
    return any((run / "base" / "checkpoints").glob(".step-*"))


def kill_and_resume(run: Path, kills: int, draw: random.Random) -> list[dict[str, float]]:
    """Train to the end through so many kills; returns what each of them cost.

    Every other kill waits for a save to begin, and then up to 20 ms: about what a save takes.
    """
    costs: list[dict[str, float]] = []
    process = start(run, resume=False)
    for number in range(kills):
        # The rest of the run is shared out among the kills that are left, each at a random place in its share.
        done = len(records(run))
        share = (STEPS - 40 - done) / (kills - number)
        wait_for_step(process, run, done + int(draw.uniform(0.3, 1.0) * share))
        if number % 2:
            deadline = time.monotonic() + 10
            while not saving(run) and time.monotonic() < deadline:
                assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(draw.uniform(0.0, 0.02))
        process.kill()
        process.wait()
        killed, reached, in_save = time.monotonic(), records(run), saving(run)
        process = start(run, resume=True)
        lost_from = wait_for_fewer(process, run, len(reached))
        wait_for_step(process, run, len(reached) - 1)
        costs.append({
            "at_step": len(reached),
            "in_save": in_save,
            "steps_again": len(reached) - lost_from,
            "seconds": round(time.monotonic() - killed, 2),
        })  # fmt: skip
        print(f"kill {number + 1} of {kills}: {costs[-1]}", file=sys.stderr, flush=True)
    assert process.wait() == 0, "the last session failed"
    return costs


def wait_for_fewer(process: subprocess.Popen[bytes], run: Path, count: int) -> int:
    """The resumed run drops the records after its checkpoint, and begins to write them again: how many it kept."""
    file = (run / "metrics.jsonl").stat().st_ino
    while (run / "metrics.jsonl").stat().st_ino == file:
        assert process.poll() is None, f"resuming failed, with code {process.returncode}"
        time.sleep(0.001)
    return min(count, len(records(run)))


def same_weights(one: Path, other: Path) -> bool:
    a, b = load_file(one / "base" / "model.safetensors"), load_file(other / "base" / "model.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        alone, killed = Path(folder) / "alone", Path(folder) / "killed"
        begun = time.monotonic()
        assert start(alone, resume=False).wait() == 0, "the undisturbed run failed"
        undisturbed = time.monotonic() - begun
        shutil.copytree(alone / "tokenizer", killed / "tokenizer")
        costs = kill_and_resume(killed, arguments.kills, random.Random(arguments.seed))
        curves = [[(r["step"], r["loss"], r.get("val_bpb")) for r in records(run)] for run in (alone, killed)]
        weights_same = same_weights(alone, killed)
    assert len(curves[0]) == STEPS
    seconds, again = [c["seconds"] for c in costs], [c["steps_again"] for c in costs]
    differing = sum(a != b for a, b in zip(*curves, strict=True)) if len(curves[1]) == STEPS else STEPS
    results = {
        "configuration": {"depth": DEPTH, "steps": STEPS, "batch_tokens": BATCH_TOKENS, "seq_len": SEQ_LEN},
        "checkpoint_seconds": CHECKPOINT_SECONDS,
        "cpu_affinity": len(os.sched_getaffinity(0)),
        "kills": len(costs),
        "kills_in_a_save": sum(bool(c["in_save"]) for c in costs),
        "steps_that_differ": differing,
        "weights_identical": weights_same,
        "seconds_per_kill": {"median": statistics.median(seconds), "worst": max(seconds)},
        "steps_again_per_kill": {"median": statistics.median(again), "worst": max(again)},
        "seconds_undisturbed": round(undisturbed, 1),
        "each": costs,
    }
    card = f"""\
{len(costs)} kills (SIGKILL), {results["kills_in_a_save"]} of them in the middle of a save
loss curve: {"bit-identical" if not differing else f"{differing} of {STEPS} steps DIFFER"}; \
final weights: {"bit-identical" if weights_same else "they DIFFER"}
time lost per kill, from the kill until the run is where it was: median {statistics.median(seconds):.1f} s, \
worst {max(seconds):.1f} s
of that, steps done again: median {statistics.median(again):.0f}, worst {max(again)}; the rest is starting Python anew
(checkpoints here every {CHECKPOINT_SECONDS} s at most; by default every 30 s, so a real run does up to 30 s again)
the undisturbed run: {undisturbed:.0f} s for {STEPS} steps"""
    report("resume", results, card)
    sys.exit(0 if weights_same and not differing else 1)


if __name__ == "__main__":
    main()
