"""Bits per byte: the loss in a unit that does not depend on the tokenizer."""

import math
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F

from nanochat.data.batches import IGNORED, Batch
from nanochat.model.modeling import NanoChatForCausalLM


@torch.no_grad()
def bits_per_byte(model: NanoChatForCausalLM, batches: Iterable[Batch], token_bytes: np.ndarray) -> float:
    """Sum of nats over the counted targets / (ln 2 * sum of their bytes).

    `token_bytes` is the tokenizer's (V,) table. Special tokens (0 bytes) and labels of -100 count in neither sum.
    Uses the precision (autocast) and the training mode that the caller has set.

    Raises:
        ValueError: if no target counts.
    """
    table = torch.from_numpy(token_bytes)
    nats, count = 0.0, 0
    for batch in batches:
        for rows in batch.split(8):  # few rows at a time: the logits of one take T * V * 4 bytes
            targets_bytes = torch.where(rows.labels == IGNORED, 0, table[rows.labels.clamp(min=0)])
            labels = torch.where(targets_bytes > 0, rows.labels, IGNORED)
            on_device = rows.to(model.device)
            logits = model(input_ids=on_device.input_ids, position_ids=on_device.position_ids, use_cache=False).logits
            loss = F.cross_entropy(
                logits.flatten(0, 1), labels.flatten().to(model.device), ignore_index=IGNORED, reduction="sum"
            )
            nats += loss.item()
            count += int(targets_bytes.sum())
    if not count:
        raise ValueError("no target counts: all labels are -100 or special tokens")
    return nats / (math.log(2) * count)
