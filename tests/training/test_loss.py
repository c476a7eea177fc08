"""The chunked loss against plain autograd: cross-entropy of the soft-capped logits, in fp32."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from training_setup import ToyBatches, tiny_model

from nanochat.native import kernels
from nanochat.training import loss as loss_module
from nanochat.training.loss import chunked_loss, loss_of

C, V = 24, 67


def plain_loss(hidden, weight, labels, cap):
    """The formula, with all the logits at once."""
    logits = hidden.float() @ weight.float().T
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="sum")


def inputs(shape, seed=0, scale=1.0, trained=0.7):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*shape, C, generator=generator)
    weight = scale * torch.randn(V, C, generator=generator)
    labels = torch.randint(0, V, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) >= trained] = -100
    return hidden, weight, labels


def with_gradients(function, hidden, weight, labels, cap, factor=1.0):
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = function(hidden, weight, labels, cap)
    (loss * factor).backward()
    return loss.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("cap", [None, 15.0, 2.0])
@pytest.mark.parametrize("chunk", [1, 7, 2048])
@pytest.mark.parametrize("trained", [1.0, 0.5, 0.02])
def test_value_and_gradients_are_those_of_autograd(monkeypatch, cap, chunk, trained):
    monkeypatch.setitem(loss_module.CHUNK_TOKENS, "cpu", chunk)
    values = inputs((3, 17), scale=2.0, trained=trained)
    expected = with_gradients(plain_loss, *values, cap, factor=0.125)
    for got, want in zip(with_gradients(chunked_loss, *values, cap, factor=0.125), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 4),
    length=st.integers(1, 9),
    cap=st.none() | st.floats(0.5, 50.0),
    scale=st.floats(0.01, 4.0),
    seed=st.integers(0, 2**31),
)
def test_gradients_for_any_shape_cap_and_scale(rows, length, cap, scale, seed):
    values = inputs((rows, length), seed=seed, scale=scale)
    expected = with_gradients(plain_loss, *values, cap)
    for got, want in zip(with_gradients(chunked_loss, *values, cap), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_in_double_precision_the_gradient_is_that_of_finite_differences():
    hidden, weight, labels = inputs((5,))
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    _, _, gradient = with_gradients(chunked_loss, hidden.double(), weight.double(), labels, 3.0)
    step = 1e-5
    above, below = (plain_double(hidden, weight.double() + sign * step * direction, labels, 3.0) for sign in (1, -1))
    assert ((above - below) / (2 * step)).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-4)


def plain_double(hidden, weight, labels, cap):
    logits = cap * torch.tanh(hidden.double() @ weight.T / cap)
    return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")


def test_nothing_trained_costs_nothing_and_pulls_nowhere():
    hidden, weight, _ = inputs((2, 5))
    loss, grad_hidden, grad_weight = with_gradients(chunked_loss, hidden, weight, torch.full((2, 5), -100), 15.0)
    assert loss == 0
    assert not grad_hidden.any() and not grad_weight.any()


def test_untrained_positions_get_no_gradient():
    hidden, weight, labels = inputs((4, 20), trained=0.5)
    _, grad_hidden, _ = with_gradients(chunked_loss, hidden, weight, labels, 15.0)
    assert not grad_hidden[labels == -100].any()
    assert grad_hidden[labels != -100].any(dim=-1).all()


def test_huge_logits_stay_finite():
    hidden, weight, labels = inputs((2, 5), scale=1e4)
    for cap in (None, 15.0):
        assert all(value.isfinite().all() for value in with_gradients(chunked_loss, hidden, weight, labels, cap))


def test_under_bf16_autocast_only_the_products_are_in_bf16():
    hidden, weight, labels = inputs((8, 32), scale=0.5)
    exact = with_gradients(plain_loss, hidden, weight, labels, 15.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, grad_hidden, grad_weight = with_gradients(chunked_loss, hidden, weight, labels, 15.0)
    assert loss.dtype == grad_hidden.dtype == grad_weight.dtype == torch.float32
    assert loss.item() == pytest.approx(exact[0].item(), rel=2e-3)
    for got, want in ((grad_hidden, exact[1]), (grad_weight, exact[2])):
        assert (got - want).norm() < 0.01 * want.norm()


def test_without_gradients_it_is_just_the_number():
    hidden, weight, labels = inputs((3, 9))
    with torch.no_grad():
        torch.testing.assert_close(chunked_loss(hidden, weight, labels, 15.0), plain_loss(hidden, weight, labels, 15.0))


def test_full_logits_are_never_held(monkeypatch):
    """Every tensor that is made is at most as large as one chunk of logits."""
    monkeypatch.setitem(loss_module.CHUNK_TOKENS, "cpu", 8)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor))
            return result

    values = inputs((8, 100), trained=1.0)
    with Watch():
        with_gradients(chunked_loss, *values, 15.0)
    assert max(sizes) <= max(8 * V, 800 * C, V * C)


def test_the_models_own_loss_is_the_same():
    model = tiny_model()
    torch.nn.init.normal_(model.lm_head.weight)
    batch = ToyBatches().batch(0)
    trained = int((batch.labels != -100).sum())
    ours = loss_of(model, batch)
    # The model shifts labels by itself: put the first token in front of them.
    labels = torch.cat([torch.full((4, 1), -100), batch.labels], dim=1)
    input_ids = torch.cat([batch.input_ids, torch.zeros(4, 1, dtype=torch.long)], dim=1)
    theirs = model(input_ids=input_ids, labels=labels).loss * trained
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_a_fresh_model_is_uniform():
    batch = ToyBatches().batch(0)
    trained = int((batch.labels != -100).sum())
    assert loss_of(tiny_model(), batch).item() / trained == pytest.approx(math.log(265), rel=1e-6)


@pytest.mark.skipif(kernels() is None, reason="there is no C compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cap", [15.0, 0.5, 40.0])
@pytest.mark.parametrize("size", [0.1, 5.0, 300.0])
def test_the_kernel_and_its_twin_agree(dtype, cap, size):
    generator = torch.Generator().manual_seed(0)
    logits = (size * torch.randn(7, 1003, generator=generator)).to(dtype)
    targets = torch.randint(1003, (7,), generator=generator)
    expected = logits.clone()
    expected_loss = loss_module.plain_cross_entropy_(expected, targets, cap)
    loss = loss_module._cross_entropy_(logits, targets, cap)
    loose = {torch.float32: 1e-5, torch.bfloat16: 5e-3}[dtype]
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    torch.testing.assert_close(logits, expected, rtol=loose, atol=loose * expected.abs().max().item())


def test_a_number_that_is_none_is_seen():
    hidden_states = torch.randn(4, 8)
    hidden_states[2, 3] = math.nan
    assert math.isnan(chunked_loss(hidden_states, torch.randn(9, 8), torch.arange(4), 15.0))


def test_the_twin_passes_over_what_is_not_trained_on():
    logits, targets = torch.randn(6, 11), torch.tensor([3, -100, 5, -100, 0, 10])
    kept = targets != -100
    alone = logits[kept].clone()
    loss = loss_module.plain_cross_entropy_(alone, targets[kept], 15.0)
    assert loss_module.plain_cross_entropy_(logits, targets, 15.0).item() == pytest.approx(loss.item())
    assert torch.equal(logits[kept], alone) and not logits[~kept].any()
