"""What a run tells: one line of JSON per step in `metrics.jsonl`, and a live bar (in a pipe, a line now and then)."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as ProgressTask
from rich.text import Text

from nanochat.common import UserError, atomic_file

LINE_EVERY_SECONDS = 15.0

Track = Callable[[dict[str, Any]], None]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; a last line cut off by a kill is passed over."""
    if not path.exists():
        return []
    records = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not {"stage", "step"} <= record.keys():
                raise ValueError("stage and step are missing")
            records.append(record)
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(f"{path} line {number} is not a step's record ({error}); delete the line.") from None
    return records


class RunLog:
    """Appends to `metrics.jsonl` and shows progress; a context manager around one stage's steps.

    Lines of `stage` from step `start` on are dropped first: a resumed run writes them again, the same. `track` gets
    every record too.
    """

    def __init__(self, path: Path, stage: str, start: int, steps: int, track: Track | None = None):
        self.stage, self.start, self.steps, self.track = stage, start, steps, track
        kept = [r for r in read_metrics(path) if r["stage"] != stage or r["step"] < start]
        with atomic_file(path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 (closed by __exit__)
        self._console = Console(highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=20), _Numbers(), TimeRemainingColumn(),
            console=self._console, disable=not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(stage, total=steps, completed=start, text="")
        self._begun = self._last_line = time.monotonic()

    def __enter__(self) -> "RunLog":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        self._file.close()

    def record(self, step: int, **values: Any) -> None:
        """Write the values of a step (0-based)."""
        record = {"stage": self.stage, "step": step, **values}
        self._file.write(json.dumps(record) + "\n")
        if self.track:
            self.track(record)

    def show(self, step: int, text: str) -> None:
        """Show that `step` steps are done, with a text of current numbers."""
        self._bar.update(self._task, completed=step, text=text)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._last_line > LINE_EVERY_SECONDS or step == self.steps):
            self._last_line = now
            left = (now - self._begun) / max(1, step - self.start) * (self.steps - step)
            self._console.print(f"{self.stage} {step}/{self.steps} {text}, {left:.0f} s left", soft_wrap=True)


class _Numbers(ProgressColumn):
    def render(self, task: ProgressTask) -> Text:
        return Text(f"{int(task.completed)}/{int(task.total or 0)} {task.fields['text']}")
