"""How tokenizing shows: a live bar; in a pipe, a line now and then."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from nanochat.common import duration
from nanochat.data.tokenization import Status

LINE_EVERY_SECONDS = 15.0


class TokenizingBar:
    """Documents, tokens, speed, and where a source's size is known the time left; a context manager around the work."""

    def __init__(self, title: str, console: Console) -> None:
        self._title, self._console = title, console
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[text]}"),
            console=console, disable=not console.is_terminal, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task(title, total=None, text="")
        self._begun = self._last_line = time.monotonic()
        self._first: Status | None = None  # what a run before had done is no work of this one

    def __enter__(self) -> "TokenizingBar":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def show(self, status: Status) -> None:
        """Show how far it is."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._begun = status, now
        text = self._text(status, self._first, now - self._begun)
        known = {} if status.share is None else {"total": 1.0, "completed": status.share}
        self._bar.update(self._task, text=text, **known)  # type: ignore[arg-type]
        if not self._console.is_terminal and now - self._last_line > LINE_EVERY_SECONDS:
            self._last_line = now
            self._console.print(f"{self._title}: {text}")

    @staticmethod
    def _text(status: Status, first: Status, seconds: float) -> str:
        parts = [f"{status.documents:,} documents", f"{status.tokens:,} tokens"]
        if seconds > 0:
            parts.append(f"{(status.text_bytes - first.text_bytes) / 1e6 / seconds:.1f} MB/s")
        if status.share is not None:
            parts.append(f"{status.share:.0%}")
            if first.share is not None and status.share > first.share:
                parts.append(f"{duration(seconds * (1 - status.share) / (status.share - first.share))} left")
        return ", ".join(parts)
