"""Weights as the native decoder reads them: panels of 16 output columns, as floats or in groups of 8 or 4 bits."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FORMATS = ("fp32", "bf16", "int8", "int4")  # by the number that decoder.c has for each
PANEL = 16  # output columns that lie together
GROUP = 32  # inputs that share a scale
BITS = {"int8": 8, "int4": 4}
LINE = 64  # bytes of a line of the processor's caches


def pack(weight: Tensor, format: str) -> Tensor:
    """Rearrange (and round) a weight (outputs, inputs) for `decoder.c`.

    Outputs are filled up with zeros to whole panels. Floats: (panels, inputs, 16). Integers: (panels, inputs / 32,
    bytes), each group 16 scales in bf16 and then its numbers; inputs must be a multiple of 32.
    """
    weight = F.pad(weight.detach().float().cpu(), (0, 0, 0, -len(weight) % PANEL))
    panels, inputs = len(weight) // PANEL, weight.shape[1]
    if format not in BITS:
        dtype = torch.bfloat16 if format == "bf16" else torch.float32
        return weight.view(panels, PANEL, inputs).mT.to(dtype).contiguous()
    bits = BITS[format]
    scales, numbers = (part.unflatten(0, (panels, PANEL)) for part in rounded(weight, format))
    # Words of two or four unsigned numbers from so many pairs of inputs that follow each other, column after column.
    pairs = (numbers + 2 ** (bits - 1)).to(torch.int32).unflatten(-1, (-1, 16 // bits, 2)).permute(0, 2, 3, 1, 5, 4)
    words = (pairs << torch.arange(0, 16, bits, dtype=torch.int32)).sum(-1)
    data = torch.where(words < 2**15, words, words - 2**16).to(torch.int16)
    data_bytes = data.contiguous().view(torch.uint8).flatten(2)
    scale_bytes = scales.mT.contiguous().view(torch.uint8)
    return torch.cat([scale_bytes, data_bytes], dim=-1).contiguous()


def side_by_side(weights: Sequence[Tensor]) -> list[Tensor]:
    """Copies in one piece of memory, in this order.

    NumPy asks the system for large pages (2 MB) where an array is large. All of the weights are read for each token,
    and with small pages that takes a tenth longer, or more.
    """
    ends = list(itertools.accumulate(-(-weight.nbytes // LINE) * LINE for weight in weights))
    memory = torch.from_numpy(np.empty(ends[-1] + LINE, np.uint8))
    memory = memory[-memory.data_ptr() % LINE :]
    copies = []
    for weight, start in zip(weights, [0, *ends]):
        copy = memory[start : start + weight.nbytes].view(weight.dtype).view(weight.shape)
        copies.append(copy.copy_(weight))
    return copies


def rounded_weight(weight: Tensor, format: str) -> Tensor:
    """What a weight (outputs, inputs) is in a format, as fp32: its twin for tests and for products elsewhere."""
    if format not in BITS:
        return weight.detach().to(torch.bfloat16 if format == "bf16" else torch.float32).float()
    scales, numbers = rounded(weight, format)
    return (scales.float()[..., None] * numbers).flatten(1)


def rounded(weight: Tensor, format: str) -> tuple[Tensor, Tensor]:
    """Scales (outputs, inputs / 32) in bf16 and whole numbers (outputs, inputs / 32, 32) in fp32 that make up a weight.

    The largest number of a group becomes the most negative one (with 4 bits there is one more of those). With 4 bits,
    of some scales around that, the one with the least squared error is taken.
    """
    groups, bits = weight.detach().float().unflatten(1, (-1, GROUP)), BITS[format]
    most = 2 ** (bits - 1) - (bits == 8)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))[..., 0]
    factors = (1.0,) if bits == 8 else (1.0, 0.93, 0.86, 1.07, 1.14)
    best: tuple[Tensor, Tensor] | None = None
    least = torch.full_like(largest, torch.inf)
    for factor in factors:
        scales = (largest * (-factor / most)).bfloat16()
        divisors = scales.float().where(scales != 0, 1.0)[..., None]
        numbers = (groups / divisors).round().clamp(-most, 2 ** (bits - 1) - 1)
        error = (groups - numbers * divisors).square().sum(-1)
        better = error < least
        least = torch.where(better, error, least)
        best = (
            (scales, numbers)
            if best is None
            else (torch.where(better, scales, best[0]), torch.where(better[..., None], numbers, best[1]))
        )
    assert best is not None
    return best
