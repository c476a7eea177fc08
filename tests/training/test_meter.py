"""Tokens, operations, speed and share of the peak, by a clock of our own."""

import itertools
import math

import pytest
from training_setup import recipe, toy_loop

from nanochat.model.accounting import flops_per_token
from nanochat.training import meter as meter_module
from nanochat.training.meter import Meter
from nanochat.training.run_log import read_metrics


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is moved."""
    now = [100.0]
    monkeypatch.setattr(meter_module.time, "monotonic", lambda: now[0])
    return now


def meter(**values):
    return Meter(recipe(), recipe().config(), **values)


def test_a_steady_speed_is_what_it_is(clock):
    per_token = flops_per_token(recipe().config(), 16)
    counted = meter(peak_flops=1000.0 * per_token)
    for step in range(1, 30):
        clock[0] += 0.25  # 64 tokens in it: 256 tokens a second
        values = counted.after(step)
        assert values == {
            "tokens": 64 * step, "flops": 64 * step * per_token, "tokens_per_second": 256.0, "mfu": 0.256,
        }  # fmt: skip


def test_speed_is_smoothed(clock):
    counted = meter()
    clock[0] += 1.0
    assert counted.after(1)["tokens_per_second"] == 64.0
    clock[0] += 0.5
    assert counted.after(2)["tokens_per_second"] == pytest.approx(0.9 * 64 + 0.1 * 128)


def test_pauses_do_not_count(clock):
    counted = meter()
    clock[0] += 1.0
    counted.after(1)
    clock[0] += 50.0  # validation
    counted.restart()
    clock[0] += 1.0
    assert counted.after(2)["tokens_per_second"] == 64.0


def test_without_a_peak_there_is_no_share_of_it(clock):
    clock[0] += 1.0
    values = meter().after(1)
    assert "mfu" not in values and "peak" not in meter().text(values | {"loss": 1.0})


def test_the_bar_shows_what_is_known(clock):
    values = {"loss": 2.0, "tokens_per_second": 12345.6, "mfu": 0.634}
    counted = meter(peak_flops=1e9, bytes_per_token=4.0)
    bits = 2 / math.log(2) / 4
    assert counted.text(values) == f"loss 2.000, {bits:.3f} bits/byte, 12,346 tokens/s, 63 % of peak"
    assert "held out 1.250" in counted.text(values | {"val_bpb": 1.25})
    assert "held out 1.250" in counted.text(values)  # until the next one
    assert meter().text({"loss": 2.0, "tokens_per_second": 1.0}) == "loss 2.000, 1 tokens/s"


def test_the_records_of_a_run_count_on_after_a_resume(tmp_path):
    counted = meter(peak_flops=1e9)
    loop = toy_loop(tmp_path, recipe=recipe(12), meter=counted)
    loop.step = 5  # as after a resume
    loop.run()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["tokens"] for record in records] == [64 * step for step in range(6, 13)]
    assert all(record["flops"] == record["tokens"] * counted.flops_per_token for record in records)
    assert all(record["mfu"] > 0 for record in records)
    assert all(one["seconds"] <= other["seconds"] for one, other in itertools.pairwise(records))
