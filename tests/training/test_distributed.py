"""Two processes train as one would: the same gradients, the same curve, checkpoints that either takes over."""

import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
import two_processes
from training_setup import losses, recipe, tiny_model, toy_loop, weights
from transformers import AutoModelForCausalLM
from two_processes import STEPS, together

from nanochat.common import Interrupted, UserError
from nanochat.training.checkpoint import Checkpoint
from nanochat.training.distributed import store_of_this_start
from nanochat.training.optimizer import state_tensors


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(losses, final weights) of one process."""
    folder = tmp_path_factory.mktemp("alone")
    loop = toy_loop(folder, recipe=recipe(STEPS))
    loop.run()
    return losses(folder), weights(loop.model)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder in which two processes trained."""
    folder = tmp_path_factory.mktemp("two")
    assert together(two_processes.train, folder) == [0, 0]
    return folder


def test_the_gradients_are_those_of_one_process(tmp_path):
    """One normaliser for the whole batch: 1 x 4, 2 x 2 and 2 x 1 + 2 x 1 rows give the same sums."""
    expected = two_processes.gradients(toy_loop(tmp_path, two_processes.model_with_a_head()))
    assert together(two_processes.all_gradients, tmp_path) == [0, 0]
    files = list(tmp_path.glob("gradients-*.pt"))
    assert len(files) == 4
    for file in files:
        got = torch.load(file)
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-5)


def test_the_curve_is_that_of_one_process(alone, two):
    expected, _ = alone
    curve = losses(two / "whole")  # every step once: the first process alone writes
    assert curve[:3] == pytest.approx(expected[:3], abs=1e-4)
    assert curve == pytest.approx(expected, abs=0.05)  # Muon makes more of rounding


def test_stopped_by_a_signal_to_one_process_and_resumed_by_two_is_bit_identical(two):
    assert losses(two / "cut") == losses(two / "whole")


def test_a_checkpoint_of_two_processes_is_a_model_folder_without_pickles(two):
    folder = two / "stopped" / "checkpoints" / "step-000007"
    model, expected = AutoModelForCausalLM.from_pretrained(folder), torch.load(two / "model.pt")
    assert all(torch.equal(weight, expected[name]) for name, weight in model.named_parameters())
    assert len(list((folder / "optimizer").iterdir())) == 2
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".json", ".jinja", ".safetensors"}


def test_one_process_takes_over_from_two(alone, two, tmp_path):
    shutil.copytree(two / "stopped", tmp_path / "run")
    loop = toy_loop(tmp_path / "run", tiny_model(seed=5), recipe=recipe(STEPS))
    assert loop.resume() and loop.step == 7
    state, expected = state_tensors(loop.model, loop.train_step.optimizers), torch.load(two / "optimizer.pt")
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    loop.run()
    curve = losses(tmp_path / "run")
    assert curve[:7] == losses(two / "whole")[:7]
    assert curve == pytest.approx(alone[0], abs=0.05)


def test_two_processes_take_over_from_one(alone, tmp_path):
    interrupt = lambda step: step == 4 and os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
    with pytest.raises(Interrupted):
        toy_loop(tmp_path / "run", recipe=recipe(STEPS), before=interrupt).run()
    assert together(two_processes.resume, tmp_path / "run") == [0, 0]
    curve = losses(tmp_path / "run")
    assert curve[:5] == alone[0][:5]
    assert curve[5:7] == pytest.approx(alone[0][5:7], abs=1e-3)
    assert curve == pytest.approx(alone[0], abs=0.05)


def test_a_part_of_a_checkpoint_that_is_missing_is_noticed(two, tmp_path):
    shutil.copytree(two / "stopped", tmp_path / "run")
    checkpoint = Checkpoint.newest(tmp_path / "run" / "checkpoints")
    sorted((checkpoint.folder / "optimizer").iterdir())[-1].unlink()
    with pytest.raises(UserError, match=r"step-000007 is damaged.*delete that folder"):
        toy_loop(tmp_path / "run", recipe=recipe(STEPS)).resume()


def test_what_diverges_on_one_process_stops_both(tmp_path):
    assert together(two_processes.poisoned, tmp_path) == [0, 0]


def test_a_mistake_that_the_first_process_finds_ends_both(tmp_path):
    first, second = together(two_processes.refuse_on_the_first, tmp_path)
    assert (first, second) == (1, 2)  # an uncaught error here; the command line says it in a sentence


def test_who_starts_again_reads_nothing_that_processes_before_it_have_left():
    left = dist.HashStore()
    left.set("ended", "yes")
    with ThreadPoolExecutor() as threads:
        for _ in range(2):  # the second time there are the first one's traces
            stores = list(threads.map(lambda rank: store_of_this_start(left, rank, 3), range(3)))
            assert not any(store.check(["ended"]) or store.check(["address"]) for store in stores)
            stores[2].set("address", "of the third")
            assert [store.get("address") for store in stores] == [b"of the third"] * 3


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="4 rows can't be shared evenly by 3 processes; choose --batch-tokens 96 "):
        toy_loop(tmp_path)
