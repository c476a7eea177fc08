"""One optimizer step: nothing that is not finite reaches a weight, and less memory gives the same step."""

import logging
import math

import pytest
import torch
from training_setup import ToyBatches, call_before_steps, losses, recipe, tiny_model, toy_loop, weights

from nanochat.common import UserError
from nanochat.training import loop as loop_module
from nanochat.training.optimizer import build_optimizers


def poison_gradient(model, name, value):
    """From the next backward pass on the gradient of a parameter holds one `value`."""

    def put(gradient):
        gradient = gradient.clone()
        gradient.view(-1)[3] = value
        return gradient

    model.get_parameter(name).register_hook(put)


@pytest.mark.parametrize("late", [0, 1], ids=["read at once", "read later, as on a GPU"])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.fc1.weight", "lm_head.weight", "model.embed_tokens.weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_named_and_no_weight_changes(tmp_path, monkeypatch, late, name, value):
    monkeypatch.setattr(loop_module, "READ_LATER", {"cpu": late})
    loop = toy_loop(tmp_path, recipe=recipe(weight_decay=0.1))
    held = {}

    def before(step):
        if step == 3:
            held.update(weights(loop.model))
            poison_gradient(loop.model, name, value)

    call_before_steps(loop, before)
    with pytest.raises(UserError, match=rf"The gradient of {name} at step 3 is not finite.*--matrix-lr 0\.02"):
        loop.run()
    assert 3 - late <= len(losses(tmp_path)) <= 3
    assert all(torch.equal(weight, held[name]) for name, weight in loop.model.state_dict().items())


def test_several_gradients_that_are_not_finite_are_counted(tmp_path):
    loop = toy_loop(tmp_path)
    for name in ("model.layers.0.mlp.fc2.weight", "model.layers.1.mlp.fc2.weight", "lm_head.weight"):
        poison_gradient(loop.model, name, math.nan)
    with pytest.raises(UserError, match=r"gradient of model\.layers\.0\.mlp\.fc2\.weight \(and of 2 more\) at step 0"):
        loop.run()


def test_a_checkpoint_is_not_written_of_what_is_not_known_to_be_good(tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module, "READ_LATER", {"cpu": 1})
    monkeypatch.setattr(loop_module, "CHECKPOINT_SECONDS", 0.0)
    loop = toy_loop(tmp_path)
    call_before_steps(loop, lambda step: step == 4 and poison_gradient(loop.model, "lm_head.weight", math.nan))
    with pytest.raises(UserError, match="at step 4 is not finite"):
        loop.run()
    rest = toy_loop(tmp_path, tiny_model(seed=5))
    if rest.resume():
        assert rest.step <= 4


def test_numbers_read_later_are_the_same(tmp_path, monkeypatch):
    toy_loop(tmp_path / "at once").run()
    monkeypatch.setattr(loop_module, "READ_LATER", {"cpu": 1})
    toy_loop(tmp_path / "later").run()
    assert losses(tmp_path / "later") == losses(tmp_path / "at once")


def test_the_norm_of_all_gradients(tmp_path):
    loop = toy_loop(tmp_path, recipe=recipe(1))
    held = []
    for parameter in loop.model.parameters():
        parameter.register_hook(held.append)
    outcome = loop.train_step.end(loop.train_step.begin(0, ToyBatches().batch(0), lambda: (False, True)))
    expected = math.sqrt(sum(gradient.square().sum().item() for gradient in held))
    assert outcome.values["grad_norm"] == pytest.approx(expected, rel=1e-5) and expected > 0
    assert (outcome.stop, outcome.save) == (False, True)


def test_found_inf_keeps_both_optimizers_from_changing_weights():
    model = tiny_model()
    optimizers = build_optimizers(model, 0.1, 0.1, 0.1, weight_decay=0.5)
    before = weights(model)
    for found, same in ((1.0, True), (0.0, False)):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) * (math.nan if same else 1.0)
        for optimizer in optimizers:
            optimizer.found_inf = torch.tensor(found)
            optimizer.step()
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, before[name]) == same, name
        optimizers = build_optimizers(model, 0.1, 0.1, 0.1, weight_decay=0.5)


def scarce_memory(loop, most_rows, error):
    """Make the loss of more rows than that run out of memory, but only in the second micro-batch of a step."""
    whole, calls = loop.train_step.loss_of, []

    def loss_of(batch):
        calls.append(len(batch.input_ids))
        if len(batch.input_ids) > most_rows and (len(calls) > 1 or loop.train_step.rows >= 4):
            error()
        return whole(batch)

    loop.train_step.loss_of = loss_of
    return calls


def too_much_for_the_cpu():
    torch.empty(2**60, dtype=torch.uint8)


def too_much_for_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize("error", [too_much_for_the_cpu, too_much_for_a_gpu])
def test_out_of_memory_halves_the_micro_batch_and_does_the_same_step(tmp_path, caplog, error):
    toy_loop(tmp_path / "enough", recipe=recipe(3, micro_batch_tokens=16)).run()
    loop = toy_loop(tmp_path / "scarce", recipe=recipe(3))
    calls = scarce_memory(loop, 1, error)
    with caplog.at_level(logging.WARNING):
        loop.run()
    assert calls[:7] == [4, 2, 1, 1, 1, 1, 1]
    assert loop.train_step.rows == 1
    assert [record.message for record in caplog.records] == [
        "Memory ran out with 4 rows of 16 tokens at a time; going on with 2.",
        "Memory ran out with 2 rows of 16 tokens at a time; going on with 1.",
    ]
    assert losses(tmp_path / "scarce") == losses(tmp_path / "enough")  # nothing of the failed tries is left


def test_a_single_row_that_is_too_much_is_tried_with_activation_checkpointing(tmp_path, caplog):
    toy_loop(tmp_path / "enough", recipe=recipe(3, micro_batch_tokens=16)).run()
    loop = toy_loop(tmp_path / "scarce", recipe=recipe(3, micro_batch_tokens=16))
    whole = loop.train_step.loss_of

    def loss_of(batch):
        if not loop.train_step.recomputes:
            too_much_for_a_gpu()
        return whole(batch)

    loop.train_step.loss_of = loss_of
    with caplog.at_level(logging.WARNING):
        loop.run()
    assert "Memory ran out with 1 row of 16 tokens at a time; going on with activation checkpointing" in caplog.text
    assert losses(tmp_path / "scarce") == pytest.approx(losses(tmp_path / "enough"), abs=1e-5)


def test_no_memory_at_all_is_said(tmp_path):
    loop = toy_loop(tmp_path)
    loop.train_step.loss_of = lambda batch: too_much_for_a_gpu()
    with pytest.raises(UserError, match=r"does not suffice for 1 row of 16 tokens.*smaller --depth or --seq-len"):
        loop.run()


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path):
    def broken(batch):
        raise RuntimeError("shapes differ")

    loop = toy_loop(tmp_path)
    loop.train_step.loss_of = broken
    with pytest.raises(RuntimeError, match="shapes differ"):
        loop.run()
