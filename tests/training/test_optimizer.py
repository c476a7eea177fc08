"""Muon against PyTorch's own, what orthogonalization does, and who trains which weight."""

import pytest
import torch
from torch import nn
from training_setup import ToyBatches, tiny_model

from nanochat.training.loss import loss_of
from nanochat.training.optimizer import Muon, build_optimizers, orthogonalize

SHAPES = [(16, 16), (16, 64), (64, 16), (16, 16), (8, 16)]


def random(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters(scale=1.0):
    return [nn.Parameter(scale * random(shape, number)) for number, shape in enumerate(SHAPES)]


@pytest.mark.parametrize("momentum", [0.0, 0.85, 0.95])
def test_muon_takes_the_steps_of_torchs_muon(momentum):
    ours, theirs = parameters(), parameters()
    start = [parameter.detach().clone() for parameter in ours]
    # PyTorch's default, "original", is Keller Jordan's sqrt(max(1, rows / cols)), and Nesterov momentum is on.
    mine = Muon(ours, lr=0.05, momentum=momentum, weight_decay=0.0)
    reference = torch.optim.Muon(theirs, lr=0.05, momentum=momentum, weight_decay=0.0, adjust_lr_fn="original")
    for step in range(6):
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad, b.grad = (random(a.shape, 100 * step + number) for _ in range(2))
        mine.step()
        reference.step()
    for a, b, was in zip(ours, theirs, start, strict=True):
        way = (b - was).norm()
        assert way > 0.1
        assert (a - b).norm() < 0.05 * way  # bf16 rounds both, each in its own order; without Nesterov it is 0.3


def test_muon_decays_weights_as_torchs_does():
    # Where the update is not scaled up for a tall shape, the decay is the same formula too.
    ours, theirs = [parameters(10.0)[i] for i in (0, 1, 4)], [parameters(10.0)[i] for i in (0, 1, 4)]
    mine = Muon(ours, lr=0.05, momentum=0.9, weight_decay=0.5)
    reference = torch.optim.Muon(theirs, lr=0.05, momentum=0.9, weight_decay=0.5)
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        a.grad, b.grad = random(a.shape, number), random(a.shape, number)
    mine.step()
    reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-3)  # the decay alone is up to 0.7


def test_muon_passes_over_what_has_no_gradient():
    one, other = parameters()[:2]
    one.grad = random(one.shape, 5)
    before = other.detach().clone()
    Muon([one, other], lr=0.1).step()
    assert torch.equal(other, before)


def test_a_zero_gradient_moves_nothing():
    weight = nn.Parameter(random((8, 16), 0))
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    Muon([weight], lr=0.1).step()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("shape", [(1, 32, 32), (4, 16, 64), (4, 64, 16), (3, 128, 128), (2, 1, 8)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_orthogonalized_singular_values_are_near_one(shape, scale):
    singular = torch.linalg.svdvals(orthogonalize(scale * random(shape, 7)).float())
    # A square random matrix has a singular value as good as zero; five steps only begin to lift it.
    lifted = singular[..., : max(1, int(0.9 * singular.shape[-1]))]
    assert lifted.min() > 0.6 and singular.max() < 1.3


def test_orthogonalize_keeps_the_singular_vectors():
    matrix = random((1, 24, 48), 3)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    aligned = (u.mT @ orthogonalize(matrix) @ vh.mT)[0]
    off_diagonal = aligned - torch.diag(aligned.diagonal())
    assert off_diagonal.abs().max() < 0.1 < 0.6 < aligned.diagonal().min()


def test_a_stack_is_orthogonalized_matrix_by_matrix():
    stack = random((3, 12, 20), 1) * torch.tensor([1.0, 100.0, 0.01])[:, None, None]
    for one, together in zip(stack, orthogonalize(stack), strict=True):
        torch.testing.assert_close(orthogonalize(one[None])[0], together, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "config",
    [{}, {"attention_bias": True}, {"tie_word_embeddings": True}, {"num_key_value_heads": 1}],
    ids=["plain", "bias", "tied", "MQA"],
)
def test_every_parameter_is_in_exactly_one_group(config):
    model = tiny_model(**config)
    optimizers = build_optimizers(model, 0.1, 0.2, 0.3, 0.0)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters()}


def test_who_trains_what_at_which_rate():
    model = tiny_model(attention_bias=True)
    muon, adamw = build_optimizers(model, 0.1, 0.2, 0.3, 0.4)
    rate = {id(p): group["initial_lr"] for o in (muon, adamw) for group in o.param_groups for p in group["params"]}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert isinstance(muon, Muon) and isinstance(adamw, torch.optim.AdamW)
    for identity, name in names.items():
        matrix = ".layers." in name and name.endswith("weight")
        assert rate[identity] == (0.3 if "lm_head" in name else 0.1 if matrix else 0.2), name
    assert [group["weight_decay"] for group in muon.param_groups] == [0.4]
    assert all(group["weight_decay"] == 0 for group in adamw.param_groups)


def test_a_step_moves_every_weight_once_the_zero_matrices_are_off_zero():
    model = tiny_model()
    optimizers = build_optimizers(model, 0.02, 0.02, 0.02, 0.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for step in range(3):
        loss_of(model, ToyBatches().batch(step)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
