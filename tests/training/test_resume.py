"""A run that was stopped anywhere goes on as if it had not been: bit-identical losses and weights."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time

import pytest
import torch
from training_setup import (
    ToyBatches,
    losses,
    recipe,
    save_often,
    tiny_model,
    toy_loop,
    train_in_process,
    weights,
)

from nanochat.common import UserError
from nanochat.training import loop as loop_module
from nanochat.training.checkpoint import Checkpoint
from nanochat.training.loop import Interrupted

STEPS = 20


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(losses, final weights) of the run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    loop = toy_loop(folder, recipe=recipe(STEPS))
    loop.run()
    return losses(folder), weights(loop.model)


def assert_same(folder, model, uninterrupted):
    expected_losses, expected_weights = uninterrupted
    assert losses(folder) == expected_losses
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected_weights[name]), name


def stop_at(step_to_stop):
    return lambda step: step == step_to_stop and os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("stops", [[0], [7], [STEPS - 1], [2, 3, 11]])
def test_interrupted_and_resumed(tmp_path, uninterrupted, stops):
    for stop in stops:
        loop = toy_loop(tmp_path, tiny_model(seed=stop), before=stop_at(stop), recipe=recipe(STEPS))
        if not loop.resume():  # its own first weights, where there is nothing to go back to
            loop = toy_loop(tmp_path, before=stop_at(stop), recipe=recipe(STEPS))
        with pytest.raises(Interrupted):
            loop.run()
    last = toy_loop(tmp_path, tiny_model(seed=99), recipe=recipe(STEPS))
    assert last.resume() and last.step == stops[-1] + 1
    last.run()
    assert_same(tmp_path, last.model, uninterrupted)


def test_bf16_run_interrupted_and_resumed(tmp_path):
    whole = toy_loop(tmp_path / "whole", recipe=recipe(10, dtype="bfloat16"))
    whole.run()
    cut = toy_loop(tmp_path / "cut", before=stop_at(4), recipe=recipe(10, dtype="bfloat16"))
    with pytest.raises(Interrupted):
        cut.run()
    rest = toy_loop(tmp_path / "cut", tiny_model(seed=5), recipe=recipe(10, dtype="bfloat16"))
    rest.resume()
    rest.run()
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(weights(rest.model).values(), weights(whole.model).values()))


def test_a_tied_embedding_resumes_too(tmp_path):
    whole = toy_loop(tmp_path / "whole", tiny_model(tie_word_embeddings=True), recipe=recipe(10))
    whole.run()
    cut = toy_loop(tmp_path / "cut", tiny_model(tie_word_embeddings=True), before=stop_at(4), recipe=recipe(10))
    with pytest.raises(Interrupted):
        cut.run()
    rest = toy_loop(tmp_path / "cut", tiny_model(seed=5, tie_word_embeddings=True), recipe=recipe(10))
    assert rest.resume()
    rest.run()
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_another_micro_batch_goes_on_with_the_same_data(tmp_path, uninterrupted):
    loop = toy_loop(tmp_path, before=stop_at(7), recipe=recipe(STEPS))
    with pytest.raises(Interrupted):
        loop.run()
    rest = toy_loop(tmp_path, recipe=recipe(STEPS, micro_batch_tokens=16))
    rest.resume()
    rest.run()
    assert losses(tmp_path)[:9] == pytest.approx(uninterrupted[0][:9], abs=1e-5)
    assert losses(tmp_path) == pytest.approx(uninterrupted[0], abs=0.02)  # Muon's bf16 makes more of rounding


def test_a_crash_goes_back_to_the_last_checkpoint(tmp_path, uninterrupted, monkeypatch):
    """Power gone between checkpoints: metrics run ahead of the weights, and are written again."""
    monkeypatch.setattr(loop_module, "time", save_often())

    def crash(step):
        if step == 15:
            raise RuntimeError("power gone")

    with pytest.raises(RuntimeError):
        toy_loop(tmp_path, before=crash, recipe=recipe(STEPS)).run()
    ahead = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(ahead[:-30])  # and the last line cut in two
    rest = toy_loop(tmp_path, tiny_model(seed=5), recipe=recipe(STEPS))
    assert rest.resume() and 0 < rest.step < 15
    rest.run()
    assert_same(tmp_path, rest.model, uninterrupted)


def test_dropout_goes_on_as_it_would_have(tmp_path):
    """Its random numbers follow from the step, so nothing of them has to be saved."""
    made = recipe(10)
    toy_loop(tmp_path / "whole", tiny_model(attention_dropout=0.2), recipe=made).run()
    cut = toy_loop(tmp_path / "cut", tiny_model(attention_dropout=0.2), before=stop_at(4), recipe=made)
    with pytest.raises(Interrupted):
        cut.run()
    torch.rand(3)
    rest = toy_loop(tmp_path / "cut", tiny_model(seed=5, attention_dropout=0.2), recipe=made)
    assert rest.resume()
    rest.run()
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


class OtherBatches(ToyBatches):
    def batch(self, step, *arguments):
        return super().batch(step + 1, *arguments)


@pytest.mark.parametrize(
    ("changed", "pattern"),
    [
        (
            {"recipe": recipe(STEPS, matrix_lr=0.5)},
            r"step-000008 was trained with matrix_lr = 0\.02, but now it is 0\.5",
        ),
        ({"batches": OtherBatches()}, "step-000008 was trained with first batch = .*choose another --run"),
    ],
    ids=["recipe", "data"],
)
def test_what_was_changed_behind_a_stopped_run_is_noticed(tmp_path, changed, pattern):
    with pytest.raises(Interrupted):
        toy_loop(tmp_path, before=stop_at(7), recipe=recipe(STEPS)).run()
    with pytest.raises(UserError, match=pattern):
        toy_loop(tmp_path, **({"recipe": recipe(STEPS)} | changed)).resume()


def test_the_seconds_of_all_sessions_add_up(tmp_path):
    loop = toy_loop(tmp_path, before=stop_at(7), recipe=recipe(STEPS))
    with pytest.raises(Interrupted):
        loop.run()
    spent = loop.seconds
    rest = toy_loop(tmp_path, recipe=recipe(STEPS))
    rest.resume()
    assert rest.seconds == pytest.approx(spent) and spent > 0
    rest.run()
    assert rest.seconds > spent
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(seconds)


def test_nothing_to_resume_is_said(tmp_path):
    assert toy_loop(tmp_path).resume() is False


def test_what_a_killed_save_left_behind_does_not_matter(tmp_path, uninterrupted):
    loop = toy_loop(tmp_path, before=stop_at(7), recipe=recipe(STEPS))
    with pytest.raises(Interrupted):
        loop.run()
    checkpoints = tmp_path / "checkpoints"
    left = checkpoints / ".step-000012.4242.tmp"
    shutil.copytree(checkpoints / "step-000008", left)
    (left / "loop.json").write_text('{"step": 12')
    (checkpoints / "step-notes").mkdir()
    rest = toy_loop(tmp_path, recipe=recipe(STEPS))
    assert rest.resume() and rest.step == 8
    rest.run()
    assert_same(tmp_path, rest.model, uninterrupted)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run in a process of its own that nobody killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train_in_process_of_its_own(folder).join()
    return folder


def train_in_process_of_its_own(folder):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nanochat.training.loop", "nanochat.checkpoints.folder"])
    process = context.Process(target=train_in_process, args=(folder, 100))
    process.start()
    return process


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))])
def test_killed_at_random_and_resumed(tmp_path, seed, undisturbed):
    """SIGKILL, during saves too, several times in a run: the curve and the weights of an undisturbed one."""
    draw, folder, kills = random.Random(seed), tmp_path / "killed", []
    for _ in range(3):
        process = train_in_process_of_its_own(folder)
        done = (Checkpoint.newest(folder / "checkpoints") or Checkpoint(folder, 0)).step
        while process.is_alive() and (Checkpoint.newest(folder / "checkpoints") or Checkpoint(folder, 0)).step <= done:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.15))
        process.kill()
        process.join()
        kills.append(process.exitcode)
    last = train_in_process_of_its_own(folder)
    last.join()
    assert -signal.SIGKILL in kills and last.exitcode == 0
    assert losses(folder) == losses(undisturbed)
    expected, got = torch.load(undisturbed / "final.pt"), torch.load(folder / "final.pt")
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert not list((folder / "checkpoints").glob(".*")), "what killed saves left behind is cleared away"
