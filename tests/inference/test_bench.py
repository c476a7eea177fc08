"""`nanochat bench`: its figures are those of what ran, and its last line is for programs."""

import json

import pytest
import torch
from small_models import TOKENIZER, needs_native, random_model

from nanochat.inference import Engine, bench
from nanochat.inference.runner import page_bytes
from nanochat.native.decoder import PAGE


@needs_native
@pytest.mark.parametrize("quantize", [None, "bf16", "int8", "int4"])
def test_weights_are_counted_as_the_decoder_holds_them(quantize):
    model = random_model(vocab_size=272)  # whole panels of 16
    engine = Engine(model, TOKENIZER, quantize)
    assert bench.weight_bytes(model.config, quantize, 4) == engine._runner.decoder.weight_bytes


def test_share_of_bandwidth_is_bytes_read_by_the_bytes_there_are():
    engine = Engine(random_model(), TOKENIZER)
    one, many = bench.speeds(engine, None, bandwidth=1e9, seconds=0.0)
    assert (one.rows, many.rows) == (1, 16)
    assert one.prompt_tokens == 48  # half of the context
    assert 0 < one.first_token_seconds < 60
    weights = bench.weight_bytes(engine.model.config, None, 4)
    cache = page_bytes(engine.model.config, 4) / PAGE * (48 + 24)
    assert one.bandwidth_share == pytest.approx((weights + cache) * one.tokens_per_second / 1e9)
    assert many.bandwidth_share == pytest.approx((weights + 16 * cache) * many.tokens_per_second / 16 / 1e9)
    assert not engine.has_work


def test_bandwidth_is_what_a_sum_of_a_large_tensor_reaches(monkeypatch):
    monkeypatch.setattr(bench, "PROBE_BYTES", {"cpu": 2**26})
    numbers = torch.zeros(2**23, dtype=torch.int64)
    ticks = iter(range(100))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(ticks) / 4)
    assert bench.memory_bandwidth() == numbers.nbytes / 0.25


def test_last_line_is_json(capsys, monkeypatch):
    monkeypatch.setattr(bench, "PROBE_BYTES", {"cpu": 2**20})
    monkeypatch.setattr(bench.speeds, "__defaults__", (0.0,))
    bench.bench(Engine(random_model(), TOKENIZER), None)
    *card, last = capsys.readouterr().out.splitlines()
    record = json.loads(last)
    assert len(card) == 3 and "GB/s" in card[0]
    assert [result["rows"] for result in record["results"]] == [1, 16]
    assert f"{record['results'][0]['tokens_per_second']:,.0f} tokens/s" in card[1]
