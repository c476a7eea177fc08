"""The loss of a GPU against its twin in PyTorch; in Triton's interpreter where there is no GPU."""

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from nanochat.native.cuda_loss import softcap_cross_entropy_
from nanochat.training.loss import plain_cross_entropy_

DTYPES = [torch.float32] + [torch.bfloat16] * (DEVICE == "cuda")  # the interpreter has no bf16


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cap", [15.0, None])
@pytest.mark.parametrize("size", [100, 4096, 9001])
def test_loss_and_gradient_are_the_twins(dtype: torch.dtype, cap: float | None, size: int) -> None:
    logits = (torch.randn(7, size, generator=torch.Generator().manual_seed(0)) * 8).to(DEVICE, dtype)
    targets = torch.tensor([0, 5, -100, size - 1, 17, -100, 50], device=DEVICE)
    twin = logits.clone()
    expected = plain_cross_entropy_(twin, targets, cap)
    loss = softcap_cross_entropy_(logits, targets, cap)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(logits.float(), twin.float(), atol=1e-6 if dtype == torch.float32 else 4e-3)
    assert not logits[2].any()
    assert not logits[5].any()


def test_huge_logits_are_no_trouble() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e30, -1e30, -1e30]], device=DEVICE)
    targets = torch.tensor([1, 2], device=DEVICE)
    assert softcap_cross_entropy_(logits.clone(), targets, None).item() == pytest.approx(2e4 + 1.0986, rel=1e-5)
    assert softcap_cross_entropy_(logits.clone(), targets, 15.0).item() == pytest.approx(30 + 1.0986, rel=1e-4)
