"""Sending a run's metrics to trackio or wandb, for who asks for it by name; neither is installed with NanoChat."""

import contextlib
import dataclasses
import importlib
import importlib.util
import uuid
from collections.abc import Iterator
from typing import Any

from nanochat.common import UserError
from nanochat.training.recipe import Recipe
from nanochat.training.run_log import Track

TRACKERS = ("trackio", "wandb")
PROJECT = "nanochat"


def new_track(tracker: str | None) -> str | None:
    """A name for a tracked stage, such as "wandb:1f0c23ab", to find it again when it is resumed; None for no tracker.

    Raises:
        UserError: if the tracker is not one we know, or is not installed.
    """
    if tracker is None:
        return None
    if tracker not in TRACKERS:
        raise UserError(f"--track takes {' or '.join(TRACKERS)}, got {tracker!r}.")
    if importlib.util.find_spec(tracker) is None:
        raise UserError(f"{tracker} is not installed; run `pip install {tracker}`, or leave out --track.")
    return f"{tracker}:{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def tracked(track: str | None, run: str, stage: str, recipe: Recipe) -> Iterator[Track | None]:
    """Open the stage in the tracker of `track`, as `new_track` named it, and yield what takes records; None for None.

    Both trackers have the same three functions. Numbers of a record go there under their own names, by its step.
    """
    if track is None:
        yield None
        return
    tracker, _, identity = track.partition(":")
    name = f"{run}-{stage}-{identity}"
    options: dict[str, Any] = {"id": identity} if tracker == "wandb" else {}
    try:
        module: Any = importlib.import_module(tracker)
        module.init(project=PROJECT, name=name, config=dataclasses.asdict(recipe), resume="allow", **options)
    except Exception as error:  # each has errors of its own: not installed, not logged in, no network
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{tracker} can't be started ({reason}); mend that, or start without --track.") from error

    def send(record: dict[str, Any]) -> None:
        numbers = {key: value for key, value in record.items() if isinstance(value, int | float) and key != "step"}
        module.log(numbers, step=record["step"])

    try:
        yield send
    finally:
        module.finish()
