"""Trackers by name: what they are told, and what is said when they can't be used."""

import sys
from types import SimpleNamespace

import pytest
from training_setup import recipe, toy_loop

from nanochat.common import UserError
from nanochat.training import tracking
from nanochat.training.tracking import new_track, tracked


@pytest.fixture
def calls(monkeypatch):
    """Both trackers "installed", with every call of theirs recorded."""
    made = []

    def recording(name):
        return lambda *arguments, **options: made.append((name, arguments, options))

    for tracker in tracking.TRACKERS:
        module = SimpleNamespace(**{name: recording(name) for name in ("init", "log", "finish")}, __spec__=object())
        monkeypatch.setitem(sys.modules, tracker, module)
    return made


def test_no_tracker_is_no_tracker():
    assert new_track(None) is None
    with tracked(None, "run", "base", recipe()) as track:
        assert track is None


@pytest.mark.parametrize("name", ["tensorboard", "", "Wandb", "os"])
def test_an_unknown_tracker_is_named(name):
    with pytest.raises(UserError, match=rf"--track takes trackio or wandb, got '{name}'"):
        new_track(name)


@pytest.mark.parametrize("name", tracking.TRACKERS)
def test_a_missing_package_is_named_with_its_remedy(monkeypatch, name):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"{name} is not installed; run `pip install {name}`"):
        new_track(name)


@pytest.mark.parametrize("name", tracking.TRACKERS)
def test_the_recipe_and_every_step_arrive(calls, tmp_path, name):
    track = new_track(name)
    with tracked(track, "demo", "base", recipe(4)) as send:
        toy_loop(tmp_path, recipe=recipe(4), track=send, validate=lambda: {"val_bpb": 1.5, "samples": [{}]}).run()
    (first, *steps, last) = calls
    identity = track.partition(":")[2]
    assert first[0] == "init" and last[0] == "finish" and len(identity) == 8
    assert first[2]["name"] == f"demo-base-{identity}" and first[2]["project"] == "nanochat"
    assert first[2]["config"]["matrix_lr"] == 0.02 and first[2]["config"]["tokens"] == 256
    assert first[2]["resume"] == "allow" and first[2].get("id") == (identity if name == "wandb" else None)
    assert [options["step"] for _, _, options in steps] == [0, 1, 2, 3]
    for method, (numbers,), _ in steps:
        assert method == "log" and {"loss", "tokens", "tokens_per_second", "val_bpb"} <= numbers.keys()
        assert not {"stage", "step", "samples"} & numbers.keys()


def test_two_runs_of_one_name_are_kept_apart_and_a_resumed_one_goes_on(calls):
    one, other = new_track("wandb"), new_track("wandb")
    for track in (one, other, one):
        with tracked(track, "demo", "base", recipe()):
            pass
    ids = [options["id"] for name, _, options in calls if name == "init"]
    assert ids[0] == ids[2] != ids[1]


def test_it_is_closed_after_an_error(calls):
    with pytest.raises(KeyboardInterrupt), tracked("wandb:1", "demo", "base", recipe()):
        raise KeyboardInterrupt
    assert calls[-1][0] == "finish"


def test_a_tracker_that_cant_start_says_why(calls, monkeypatch):
    def refuse(**options):
        raise RuntimeError("api_key not configured\nlong story")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    message = r"wandb can't be started \(api_key not configured\); mend that, or start without --track"
    with pytest.raises(UserError, match=message), tracked("wandb:1", "demo", "base", recipe()):
        pass
