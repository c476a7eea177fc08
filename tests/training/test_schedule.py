"""What any schedule of rates must do, whatever its tuned numbers are."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from nanochat.training.schedule import learning_rate_factor, muon_momentum

schedules = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 5000),
        "warmup_steps": st.integers(0, 100),
        "decay_fraction": st.floats(0.0, 1.0),
        "final_lr_fraction": st.floats(0.0, 1.0),
    }
)


def factors(schedule):
    return [learning_rate_factor(step, **schedule) for step in range(schedule["steps"])]


@given(schedules)
def test_every_factor_is_above_zero_and_at_most_one(schedule):
    assert all(0 < factor <= 1 for factor in factors(schedule))


@given(schedules)
def test_it_rises_over_the_warmup_then_never_again(schedule):
    values = factors(schedule)
    plateau = schedule["warmup_steps"]
    decay_begins = schedule["steps"] - max(1, round(schedule["decay_fraction"] * schedule["steps"]))
    assert values[: min(plateau, decay_begins)] == sorted(values[: min(plateau, decay_begins)])
    assert values[plateau:] == sorted(values[plateau:], reverse=True)


@given(schedules)
def test_between_warmup_and_decay_the_rate_is_at_its_peak(schedule):
    values = factors(schedule)
    decay_begins = schedule["steps"] - max(1, round(schedule["decay_fraction"] * schedule["steps"]))
    assert all(value == 1 for value in values[max(0, schedule["warmup_steps"] - 1) : decay_begins + 1])


def test_the_decay_is_linear_and_ends_near_its_final_fraction():
    values = [learning_rate_factor(step, 1000, 0, 0.5, 0.1) for step in range(1000)]
    differences = [before - after for before, after in itertools.pairwise(values[501:])]
    assert max(differences) - min(differences) < 1e-12
    assert 0.1 < values[-1] < 0.1 + 0.9 / 400


@given(st.integers(0, 100_000))
def test_momentum_rises_and_stays_below_one(step):
    assert 0.5 <= muon_momentum(step) <= muon_momentum(step + 1) < 1
