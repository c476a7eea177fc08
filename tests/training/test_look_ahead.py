"""The next thing is made while the one at hand is used, in order, and nothing is left behind."""

import threading

import pytest

from nanochat.training.look_ahead import look_ahead


def test_all_come_in_order():
    with look_ahead(lambda step: 10 * step, range(3, 8)) as made:
        assert list(made) == [30, 40, 50, 60, 70]
    with look_ahead(lambda step: step, range(0)) as made:
        assert list(made) == []


def test_the_next_one_is_made_meanwhile_and_only_that():
    begun = [threading.Event() for _ in range(4)]
    with look_ahead(lambda step: begun[step].set(), range(4)) as made:
        next(made)
        assert begun[1].wait(timeout=10)
        assert not begun[2].wait(timeout=0.1)


def test_what_goes_wrong_arrives_at_its_own_step():
    def make(step):
        if step == 2:
            raise ValueError("broken row")
        return step

    got = []
    with pytest.raises(ValueError, match="broken row"), look_ahead(make, range(5)) as made:
        got.extend(iter(lambda: next(made), None))
    with look_ahead(make, range(5)) as made:
        assert [next(made), next(made)] == [0, 1]


def test_the_thread_is_gone_at_the_end():
    before = threading.active_count()
    with look_ahead(lambda step: step, range(5)) as made:
        next(made)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
