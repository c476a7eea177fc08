"""Curves: few points, true ones, and pictures that don't grow with the run."""

import numpy as np
import pytest

from nanochat.evaluation.curves import learning_curves, median_of, series, smoothed, thinned


def records(steps, stage="base", **values):
    return [
        {"stage": stage, "step": step, "loss": 9 / (1 + step), "seconds": 0.5 * step, "tokens_per_second": 1000.0}
        | {"mfu": 0.4}
        | ({"val_bpb": 4 / (1 + step)} if step % 10 == 9 else {})
        | values
        for step in range(steps)
    ]


def test_a_series_has_the_records_that_have_both_values():
    xs, ys = series(records(25), "step", "val_bpb")
    assert xs.tolist() == [10, 20] and ys.tolist() == [4 / 10, 4 / 20]
    assert series(records(3), "seconds", "loss")[0].tolist() == [0, 0.5, 1]
    assert len(series([], "step", "loss")[0]) == 0


@pytest.mark.parametrize("count", [1, 599, 600, 601, 1000, 12_345, 100_000])
def test_thinned_curves_keep_their_mean_and_their_end(count):
    xs, ys = np.arange(1.0, count + 1), np.random.default_rng(0).normal(5, 1, count)
    few_xs, few_ys = thinned(xs, ys)
    assert len(few_xs) == len(few_ys) <= 600 and few_xs[-1] == count
    assert (np.diff(few_xs) > 0).all() if count > 1 else True
    weights = np.diff(few_xs, prepend=0)  # each point is the mean of the steps up to it
    assert np.average(few_ys, weights=weights) == pytest.approx(ys.mean())


def test_smoothing_takes_noise_away_and_begins_without_a_lag():
    noisy = 3 + np.random.default_rng(0).normal(0, 1, 5000)
    assert smoothed(noisy)[500:].std() < 0.15 and smoothed(noisy).mean() == pytest.approx(3, abs=0.05)
    assert smoothed(noisy)[0] == noisy[0]
    assert smoothed(np.full(1000, 2.5)) == pytest.approx(2.5)
    assert smoothed(np.array([3.0, 1.0])).tolist() == [3.0, 1.0]  # short curves are left as they are


def test_the_median_is_of_those_that_have_the_value():
    assert median_of([{"mfu": 0.2}, {}, {"mfu": 0.9}, {"mfu": 0.3}], "mfu") == 0.3
    assert median_of([{}], "mfu") is None


def test_a_long_run_makes_no_large_picture():
    assert len(learning_curves(records(100_000), {"base": "pretraining"})) < 300_000


def test_there_are_three_pictures_for_each_stage_that_has_begun():
    stages = {"base": "pretraining", "chat": "chat tuning"}
    one = learning_curves(records(30), stages)
    both = learning_curves(records(30) + records(30, stage="chat"), stages)
    assert (one.count('id="axes_'), both.count('id="axes_')) == (6, 12)  # each with a second scale
    assert both == learning_curves(records(30) + records(30, stage="chat"), stages)


def test_records_of_older_versions_have_curves():
    old = [{"stage": "base", "step": 0, "loss": 1.0, "seconds": 1.0, "tokens_per_second": 5.0}]
    assert "<svg" in learning_curves(old, {"base": "pretraining"})
