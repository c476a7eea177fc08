"""Bits per byte against sums done by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nanochat.data.batches import Batch
from nanochat.evaluation.bits_per_byte import bits_per_byte
from nanochat.model.configuration import NanoChatConfig
from nanochat.model.modeling import NanoChatForCausalLM

# Five tokens: of 1, 2, 3 and 4 bytes, and a special one.
TOKEN_BYTES = np.array([1, 2, 3, 4, 0], np.int32)
PROBABILITIES = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625])


class FixedModel:
    """Predicts the same distribution everywhere, and remembers what it was given."""

    device = torch.device("cpu")

    def __init__(self):
        self.rows, self.positions = [], []

    def __call__(self, input_ids, position_ids, use_cache):
        self.rows.append(len(input_ids))
        self.positions.append(position_ids)
        return SimpleNamespace(logits=PROBABILITIES.log().expand(*input_ids.shape, 5))


def batch(labels, positions=None):
    labels = torch.tensor(labels)
    return Batch(torch.zeros_like(labels), labels, positions)


def test_by_hand():
    # Targets 0 and 1: 1 + 2 bits over 1 + 2 bytes.
    assert bits_per_byte(FixedModel(), [batch([[0, 1]])], TOKEN_BYTES) == pytest.approx(1.0)
    # Targets 0, 2, 3: 1 + 3 + 4 bits over 1 + 3 + 4 bytes; twice 1: 4 bits over 4 bytes.
    assert bits_per_byte(FixedModel(), [batch([[0, 2, 3]])], TOKEN_BYTES) == pytest.approx(1.0)
    other = np.array([2, 8, 1, 1, 0], np.int32)
    assert bits_per_byte(FixedModel(), [batch([[0, 1, 1]])], other) == pytest.approx((1 + 2 + 2) / (2 + 8 + 8))


def test_special_tokens_and_masked_targets_count_in_neither_sum():
    plain = bits_per_byte(FixedModel(), [batch([[0, 3]])], np.array([3, 1, 1, 1, 0], np.int32))
    table = np.array([3, 1, 1, 1, 0], np.int32)
    assert bits_per_byte(FixedModel(), [batch([[0, 4, -100, 3, -100, 4]])], table) == pytest.approx(plain)
    assert plain == pytest.approx((1 + 4) / (3 + 1))


def test_sums_run_over_all_batches_before_the_division():
    table = np.array([1, 10, 1, 1, 0], np.int32)
    value = bits_per_byte(FixedModel(), [batch([[0], [0]]), batch([[1]])], table)
    assert value == pytest.approx((1 + 1 + 2) / (1 + 1 + 10))  # not the mean of 1.0 and 0.2


def test_rows_are_fed_a_few_at_a_time_with_their_positions():
    model = FixedModel()
    positions = torch.arange(20)[:, None].expand(20, 2)
    bits_per_byte(model, [batch([[0, 1]] * 20, positions)], TOKEN_BYTES)
    assert sum(model.rows) == 20 and max(model.rows) <= 8
    assert torch.equal(torch.cat(model.positions), positions)


def test_nothing_to_count_is_an_error():
    with pytest.raises(ValueError, match="no target counts"):
        bits_per_byte(FixedModel(), [batch([[4, -100]])], TOKEN_BYTES)
    with pytest.raises(ValueError, match="no target counts"):
        bits_per_byte(FixedModel(), [], TOKEN_BYTES)


def test_a_real_model_by_its_own_logits():
    torch.manual_seed(0)
    model = NanoChatForCausalLM(
        NanoChatConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    ).eval()
    rows = torch.randint(0, 64, (3, 9))
    table = np.arange(64, dtype=np.int32) % 5  # every fifth token is a special one
    value = bits_per_byte(model, [Batch(rows[:, :-1], rows[:, 1:])], table)
    with torch.no_grad():
        logs = model(rows[:, :-1]).logits.double().log_softmax(-1)
    bits = bytes_ = 0.0
    for row in range(3):
        for place in range(8):
            target = int(rows[row, place + 1])
            if table[target]:
                bits -= logs[row, place, target].item() / math.log(2)
                bytes_ += table[target]
    assert value == pytest.approx(bits / bytes_, rel=1e-5)
    assert not any(parameter.grad is not None for parameter in model.parameters())
