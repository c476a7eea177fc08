"""The command line under torchrun: two processes make one run."""

import os
import signal
import subprocess
import sys
import time

import pytest
from toy_data import write_corpus
from transformers import AutoModelForCausalLM

from nanochat.training.run_log import read_metrics

TORCHRUN = [*("-m", "torch.distributed.run", "--nproc-per-node", "2"), *("--rdzv-backend", "c10d")]
SIZES = [*("--depth", "1", "--vocab-size", "300", "--seq-len", "32", "--tokens", "128000"),
         *("--batch-tokens", "128", "--dtype", "float32")]  # fmt: skip


def start(arguments, launcher=()):
    # `--` ends torchrun's own options: it takes `--run` for a short form of its `--run-path`.
    command = [sys.executable, *launcher, "-m", "nanochat", *(["--"] if launcher else []), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def torchrun(*arguments):
    return start(arguments, [*TORCHRUN, "--rdzv-endpoint", "localhost:0"])


@pytest.mark.slow
def test_two_processes_are_stopped_one_goes_on_and_a_third_time_is_refused(tmp_path):
    run, data = tmp_path / "run", write_corpus(tmp_path / "corpus.jsonl")
    both = torchrun("pretrain", "--run", run, "--data", data, *SIZES)
    deadline = time.monotonic() + 90
    while len(read_metrics(run / "metrics.jsonl")) < 20:
        assert both.poll() is None and time.monotonic() < deadline, both.communicate()
        time.sleep(0.1)
    both.send_signal(signal.SIGINT)
    out, _ = both.communicate(timeout=60)
    assert out.count("Stopped after step") == 1 and "--resume" in out
    steps = [record["step"] for record in read_metrics(run / "metrics.jsonl")]
    assert steps == list(range(len(steps))) and 20 <= len(steps) < 1000
    assert [path.name for path in (run / "base" / "checkpoints").iterdir()] == [f"step-{len(steps):06d}"]

    one = start(["pretrain", "--run", run, "--resume", "--micro-batch-tokens", "64"])
    out, err = one.communicate(timeout=90)
    assert one.returncode == 0 and f"going on after step {len(steps)}" in out, err
    assert [record["step"] for record in read_metrics(run / "metrics.jsonl")] == list(range(1000))
    assert AutoModelForCausalLM.from_pretrained(run / "base").config.num_hidden_layers == 1

    refused = torchrun("pretrain", "--run", run, "--data", data, *SIZES)
    _, err = refused.communicate(timeout=90)
    assert refused.returncode != 0
    assert err.count("was begun before; go on with --resume") == 1
