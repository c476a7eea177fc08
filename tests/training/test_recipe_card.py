"""The card before a run: its figures by hand, for a machine of round numbers."""

import dataclasses
import re

import pytest

from nanochat.model.accounting import training_state_bytes
from nanochat.training import machine as machine_module
from nanochat.training.machine import EXPECTED_UTILIZATION, Machine
from nanochat.training.recipe import Recipe
from nanochat.training.recipe_card import expected_seconds, machine_line, recipe_card

MACHINE = Machine("cpu", "A Processor", 2, 16 * 10**9, "bfloat16")


@pytest.fixture(autouse=True)
def known_peak(monkeypatch):
    monkeypatch.setattr(machine_module, "measured_peak", lambda device, dtype, again: 500e9)
    monkeypatch.setitem(EXPECTED_UTILIZATION, "cpu", 0.4)


def lines(recipe, **values):
    card = recipe_card(recipe, recipe.config(), MACHINE, **values)
    return dict(re.split(r"\s{2,}|(?<=reference) ", line, maxsplit=1) for line in card.splitlines())


def test_time_is_work_over_speed():
    recipe = Recipe.from_depth(4, 2048, MACHINE)
    seconds = expected_seconds(recipe, recipe.config(), MACHINE)
    assert seconds == pytest.approx(recipe.flops(recipe.config()) / (500e9 * 0.4))
    assert lines(recipe)["time"].startswith(f"about {seconds // 3600:.0f} h")
    assert "at 40 % of the peak" in lines(recipe)["time"]
    assert expected_seconds(recipe, recipe.config(), MACHINE, processes=4) == pytest.approx(seconds / 4)
    assert machine_line(recipe, recipe.config(), MACHINE, processes=4).startswith("4 processes, each with 2 threads")


def test_the_card_has_every_figure():
    recipe = Recipe.from_depth(4, 2048, MACHINE, seq_len=256, tokens=4_096_000, batch_tokens=8192, seed=7)
    card = lines(recipe)
    assert card["model"] == "4 layers, width 256, 2 heads, context 256, vocabulary 2,048"
    assert card["parameters"] == "4.19 M: embedding 524 k, blocks 3.15 M, head 524 k"
    assert card["tokens"] == "4,096,000, 1.0 per parameter"
    assert card["steps"].startswith("500 of 8,192 tokens (32 rows of 256), in 1 micro-batch of 8,192 tokens")
    assert card["schedule"].endswith("seed 7")
    assert card["work"] == "9.66e+13 FLOPs, 23.6 MFLOPs per token"
    assert card["machine"] == "2 threads of A Processor, bfloat16, peak 500 GFLOP/s (measured)"
    assert f"{training_state_bytes(recipe.config()) / 1e6:.1f} MB for weights" in card["memory"]
    assert "16.0 GB free" in card["memory"] and "not fit" not in card["memory"]


def test_cost_is_by_the_hour_and_only_if_the_price_is_known():
    recipe = Recipe.from_depth(4, 2048, MACHINE)
    hours = expected_seconds(recipe, recipe.config(), MACHINE) / 3600
    assert lines(recipe, price_per_hour=20.0)["cost"] == f"${20 * hours:.2f}"
    assert lines(recipe, price_per_hour=0.0)["cost"] == "$0.00"
    assert "--price-per-hour" in lines(recipe)["cost"]


def test_the_reference_is_eight_h100_at_a_stated_price_and_share():
    recipe = Recipe.from_depth(20, 65536, MACHINE)
    seconds = recipe.flops(recipe.config()) / (8 * 989e12 * 0.4)
    said = lines(recipe)["for reference"]
    assert said.startswith("8 x H100 at 40 % of peak, $3 per GPU-hour: 1 h")
    assert said.endswith(f"${seconds / 3600 * 24:.2f}")


def test_a_model_that_will_not_fit_is_pointed_out():
    small = dataclasses.replace(MACHINE, memory=10**9)
    recipe = Recipe.from_depth(12, 32768, small)
    assert "may not fit" in recipe_card(recipe, recipe.config(), small)


def test_one_line_when_training_starts():
    recipe = Recipe.from_depth(4, 2048, MACHINE, tokens=2_000_000, seq_len=256)
    line = machine_line(recipe, recipe.config(), MACHINE)
    parts = r"bfloat16, peak 500 GFLOP/s \(measured\), micro-batches of [\d,]+ tokens, about \d+ min"
    assert re.fullmatch(f"2 threads of A Processor, {parts}", line)
