"""The command line under torchrun: two processes make one run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_data import write_corpus
from transformers import AutoModelForCausalLM

from nanochat.training.run_log import read_metrics

TORCHRUN = [*("-m", "torch.distributed.run", "--nproc-per-node", "2"), *("--rdzv-backend", "c10d")]
SIZES = [*("--depth", "1", "--vocab-size", "300", "--seq-len", "32", "--tokens", "51200"),
         *("--batch-tokens", "128", "--dtype", "float32")]  # fmt: skip


def start(arguments, launcher=()):
    # `--` ends torchrun's own options: it takes `--run` for a short form of its `--run-path`.
    command = [sys.executable, *launcher, "-m", "nanochat", *(["--"] if launcher else []), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def torchrun(*arguments, restarts=0):
    return start(arguments, [*TORCHRUN, "--rdzv-endpoint", "localhost:0", "--max-restarts", str(restarts)])


def wait_for_steps(process, run, steps):
    deadline = time.monotonic() + 180
    while len(read_metrics(run / "metrics.jsonl")) < steps:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)


def process_of_rank(launcher, rank):
    """The process that a launcher has started with this RANK."""
    children = map(int, Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split())
    ranks = {child: f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes() for child in children}
    [found] = [child for child, matches in ranks.items() if matches]
    return found


@pytest.mark.slow
def test_two_processes_are_stopped_one_goes_on_and_a_third_time_is_refused(tmp_path):
    run, data = tmp_path / "run", write_corpus(tmp_path / "corpus.jsonl")
    both = torchrun("pretrain", "--run", run, "--data", data, *SIZES)
    wait_for_steps(both, run, 20)
    both.send_signal(signal.SIGINT)
    out, _ = both.communicate(timeout=120)
    assert out.count("Stopped after step") == 1 and "--resume" in out
    steps = [record["step"] for record in read_metrics(run / "metrics.jsonl")]
    assert steps == list(range(len(steps))) and 20 <= len(steps) < 400
    assert [path.name for path in (run / "base" / "checkpoints").iterdir()] == [f"step-{len(steps):06d}"]

    one = start(["pretrain", "--run", run, "--resume", "--micro-batch-tokens", "64"])
    out, err = one.communicate(timeout=240)
    assert one.returncode == 0 and f"going on after step {len(steps)}" in out, err
    assert [record["step"] for record in read_metrics(run / "metrics.jsonl")] == list(range(400))
    assert AutoModelForCausalLM.from_pretrained(run / "base").config.num_hidden_layers == 1

    refused = torchrun("pretrain", "--run", run, "--data", data, *SIZES)
    _, err = refused.communicate(timeout=240)
    assert refused.returncode != 0
    assert err.count("was begun before; go on with --resume") == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds its processes as on Linux")
def test_when_a_process_is_killed_torchrun_starts_again_and_the_run_goes_on(tmp_path):
    run, data = tmp_path / "run", write_corpus(tmp_path / "corpus.jsonl")
    both = torchrun("pretrain", "--run", run, "--data", data, *SIZES, restarts=1)
    wait_for_steps(both, run, 20)
    os.kill(process_of_rank(both, 1), signal.SIGKILL)
    _, err = both.communicate(timeout=240)
    assert both.returncode == 0, err
    assert [record["step"] for record in read_metrics(run / "metrics.jsonl")] == list(range(400))
    assert (run / "base" / "config.json").is_file()
