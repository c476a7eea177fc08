"""Weights in the native decoder's formats, against their twins."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanochat.native.packing import BITS, FORMATS, GROUP, PANEL, pack, rounded_weight, side_by_side


def unpacked(packed: Tensor, outputs: int, inputs: int, format: str) -> Tensor:
    """What the bytes say, (outputs, inputs) in fp32, read number by number as decoder.c documents them."""
    if format in ("fp32", "bf16"):
        return packed.float().permute(0, 2, 1).reshape(-1, inputs)[:outputs]
    data = packed.numpy()
    weight = np.zeros((len(data) * PANEL, inputs), np.float32)
    scales = packed[..., : 2 * PANEL].contiguous().view(torch.bfloat16).float().numpy()  # (panels, groups, 16)
    for panel, group, column, i in np.ndindex(len(data), inputs // GROUP, PANEL, GROUP):
        numbers = data[panel, group, 2 * PANEL :]
        bits = BITS[format]
        words = numbers.view(np.uint16).reshape(-1, PANEL, 2)  # two or four pairs of k in a word
        pairs = 16 // bits
        word = int(words[i // (2 * pairs), column, i % 2])
        number = (word >> (bits * (i // 2 % pairs)) & (2**bits - 1)) - 2 ** (bits - 1)
        with np.errstate(invalid="ignore"):  # infinity times zero
            weight[panel * PANEL + column, group * GROUP + i] = scales[panel, group, column] * number
    return torch.from_numpy(weight[:outputs])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 32), (20, 64), (1, 96), (48, 32)])
def test_the_bytes_are_the_rounded_weight(format: str, outputs: int, inputs: int) -> None:
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))
    packed = pack(weight, format)
    assert packed.is_contiguous()
    assert torch.equal(unpacked(packed, outputs, inputs, format), rounded_weight(weight, format))


def test_copies_side_by_side_are_equal_and_lie_in_one_piece() -> None:
    weights = [torch.randn(3, 5), torch.randn(2, 3, 16).bfloat16(), torch.arange(7, dtype=torch.uint8)]
    copies = side_by_side(weights)
    assert all(copy.dtype == weight.dtype and torch.equal(copy, weight) for copy, weight in zip(copies, weights))
    assert [copy.data_ptr() - copies[0].data_ptr() for copy in copies] == [0, 64, 256]
    assert copies[0].data_ptr() % 64 == 0


@given(st.integers(0, 10**6), st.integers(1, 20), st.sampled_from([1e-30, 1e-3, 1.0, 1e6, 1e30]))
@settings(max_examples=50, deadline=None)
def test_rounding_errors_are_bounded_by_the_steps_of_the_format(seed: int, outputs: int, size: float) -> None:
    weight = torch.randn(outputs, 64, generator=torch.Generator().manual_seed(seed)) * size
    largest = weight.unflatten(1, (-1, GROUP)).abs().amax(-1, keepdim=True).expand(-1, -1, GROUP).flatten(1)
    assert torch.equal(rounded_weight(weight, "fp32"), weight)
    assert ((rounded_weight(weight, "bf16") - weight).abs() <= weight.abs() * 2**-8).all()
    assert ((rounded_weight(weight, "int8") - weight).abs() <= largest * (0.51 / 127 + 2**-8)).all()
    assert ((rounded_weight(weight, "int4") - weight).abs() <= largest * 0.21).all()


@pytest.mark.parametrize(("format", "most"), [("bf16", 0.002), ("int8", 0.007), ("int4", 0.09)])
def test_normal_weights_lose_little(format: str, most: float) -> None:
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    error = (rounded_weight(weight, format) - weight).norm() / weight.norm()
    assert error < most


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_stay_zeros_and_what_is_no_number_stays_none(format: str) -> None:
    weight = torch.zeros(16, 64)
    assert torch.equal(rounded_weight(weight, format), weight)
    assert not unpacked(pack(weight, format), 16, 64, format).any()
    for bad in (torch.nan, torch.inf, -torch.inf):
        weight = torch.ones(16, 64)
        weight[3, 5] = bad
        seen = unpacked(pack(weight, format), 16, 64, format)
        assert not seen[3, 5].isfinite()
        assert seen[:3].isfinite().all()
        assert seen[4:].isfinite().all()


def test_a_training_weight_is_packed_without_its_gradient() -> None:
    weight = torch.nn.Parameter(torch.ones(16, 32))
    for format in FORMATS:
        assert not pack(weight, format).requires_grad
        assert not rounded_weight(weight, format).requires_grad
