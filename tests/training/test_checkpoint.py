"""Checkpoints: model folders that anybody opens, whole or absent, and clear words about damaged ones."""

import errno
import json
import os
import resource
import shutil
import signal

import pytest
import torch
from training_setup import call_before_steps, losses, recipe, save_often, tiny_model, toy_loop, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from nanochat.common import UserError
from nanochat.training import loop as loop_module
from nanochat.training.checkpoint import KEEP, Checkpoint
from nanochat.training.loop import Interrupted
from nanochat.training.optimizer import state_tensors

STEPS = 20


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was stopped after 16 of 20 steps, with checkpoints on the way."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module, "time", save_often())
        loop = toy_loop(folder, before=lambda step: step == 15 and interrupt(), recipe=recipe(STEPS))
        with pytest.raises(Interrupted):
            loop.run()
    return folder


@pytest.fixture
def run(stopped, tmp_path):
    """A copy of it to damage."""
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


def checkpoints(folder):
    return sorted(path for path in (folder / "checkpoints").iterdir())


def test_only_the_newest_two_are_kept(stopped):
    names = [path.name for path in checkpoints(stopped)]
    assert len(names) == KEEP == 2
    assert names[-1] == "step-000016"


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_are_kept_as_asked_for(tmp_path, keep):
    loop = toy_loop(tmp_path, keep=keep)
    for loop.step in range(1, 6):
        loop._save({})
    assert [path.name for path in checkpoints(tmp_path)] == [f"step-{step:06d}" for step in range(6 - keep, 6)]


def test_every_checkpoint_is_a_model_folder(stopped):
    for folder in checkpoints(stopped):
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert type(model).__module__.startswith("nanochat.")
        assert model.dtype == torch.float32
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt"
        )
        assert model.generate(**ids, max_new_tokens=2, do_sample=False).shape[0] == 1
    fresh = tiny_model(seed=3)
    optimizers = toy_loop(stopped, fresh).train_step.optimizers
    Checkpoint.newest(stopped / "checkpoints").restore(fresh, state_tensors(fresh, optimizers))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, fresh.state_dict()[name]), name


def test_the_step_of_a_checkpoint_is_its_name(stopped):
    for path in checkpoints(stopped):
        assert json.loads((path / "loop.json").read_text())["step"] == int(path.name.removeprefix("step-"))
    assert Checkpoint.newest(stopped / "checkpoints") == Checkpoint(stopped / "checkpoints" / "step-000016", 16)


def test_steps_are_ordered_as_numbers(tmp_path):
    for name in ("step-999999", "step-1000000", "step-000002"):
        (tmp_path / name).mkdir()
    assert Checkpoint.newest(tmp_path).step == 1_000_000


def test_a_folder_that_is_not_there_has_no_checkpoint(tmp_path):
    assert Checkpoint.newest(tmp_path / "nowhere") is None


def optimizer_file(folder):
    [file] = (folder / "optimizer").iterdir()
    return file


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "weights cut off": lambda folder: truncate(folder / "model.safetensors"),
    "weights empty": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "weights missing": lambda folder: (folder / "model.safetensors").unlink(),
    "optimizer cut off": lambda folder: truncate(optimizer_file(folder)),
    "optimizer empty": lambda folder: optimizer_file(folder).write_bytes(b""),
    "optimizer missing": lambda folder: optimizer_file(folder).unlink(),
    "optimizer's folder missing": lambda folder: shutil.rmtree(folder / "optimizer"),
    "optimizer garbled": lambda folder: optimizer_file(folder).write_bytes(
        os.urandom(optimizer_file(folder).stat().st_size)
    ),
    "state missing": lambda folder: (folder / "loop.json").unlink(),
    "state cut off": lambda folder: truncate(folder / "loop.json"),
    "state of another shape": lambda folder: (folder / "loop.json").write_text("[]"),
    "state without its step": lambda folder: (folder / "loop.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_good(run, damage):
    older, newest = checkpoints(run)
    damage(newest)
    with pytest.raises(UserError, match=r"is damaged.*delete that folder to go on from the one before") as error:
        toy_loop(run, recipe=recipe(STEPS)).resume()
    assert str(newest) in str(error.value) and "\n" not in str(error.value)
    shutil.rmtree(newest)  # the remedy
    loop = toy_loop(run, tiny_model(seed=7), recipe=recipe(STEPS))
    assert loop.resume() and loop.step == int(older.name.removeprefix("step-"))
    loop.run()
    assert len(losses(run)) == STEPS


def test_nothing_in_a_checkpoint_is_a_pickle(stopped):
    files = [path for path in checkpoints(stopped)[-1].rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".jinja", ".safetensors"}


def test_a_checkpoint_of_another_model_is_refused(run):
    other = tiny_model(intermediate_size=48)
    with pytest.raises(UserError, match="is damaged"):
        toy_loop(run, other, recipe=recipe(STEPS)).resume()


@pytest.fixture
def little_room():
    """No file may grow beyond some kilobytes: the operating system then fails writes as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [20_000, 150_000], ids=["in the weights", "in the optimizer's state"])
def test_a_full_disk_leaves_the_checkpoint_before(run, little_room, size):
    before = {path.name: sorted(file.stat().st_size for file in path.iterdir()) for path in checkpoints(run)}
    loop = toy_loop(run, recipe=recipe(STEPS))
    loop.resume()
    call_before_steps(loop, lambda step: step == 18 and interrupt())
    saved = loop.save_model

    def save_with_little_room(path):
        little_room(size)
        saved(path)

    loop.save_model = save_with_little_room
    with pytest.raises(UserError, match=r"step-000019 can't be written \(.*\); make room.*--resume"):
        loop.run()
    little_room(resource.RLIM_INFINITY)
    after = {path.name: sorted(file.stat().st_size for file in path.iterdir()) for path in checkpoints(run)}
    assert after == before
    rest = toy_loop(run, tiny_model(seed=7), recipe=recipe(STEPS))
    assert rest.resume() and rest.step == 16
    rest.run()
    assert len(losses(run)) == STEPS


def test_no_space_for_the_folder_itself(run, monkeypatch):
    loop = toy_loop(run, recipe=recipe(STEPS))
    loop.resume()

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    loop.save_model = full
    before = weights(loop.model)
    with pytest.raises(UserError, match="No space left on device"):
        loop._save({})
    assert [path.name for path in checkpoints(run)][-1] == "step-000016"
    assert not [path for path in checkpoints(run) if path.name.startswith(".")]
    assert all(torch.equal(a, b) for a, b in zip(before.values(), weights(loop.model).values()))
