"""What every room may use: errors that are the user's to mend or to wish, writes that are whole or absent, figures."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


class UserError(ValueError):
    """A mistake that the user can mend; the message names the value and the remedy.

    The command line prints it as one sentence and exits with code 2, without a traceback.
    """


class Interrupted(Exception):  # noqa: N818 (nothing went wrong)
    """The user stopped the run (Ctrl-C or SIGTERM); a checkpoint of everything up to `step` is saved."""

    def __init__(self, step: int):
        super().__init__(f"stopped after step {step}")
        self.step = step


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place only when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place only when the block ends well.

    A folder that stood there before is replaced. A kill between the two renames leaves the new one complete
    under its temporary name and the old one under `.NAME.PID.old`: never half a folder under `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            os.replace(path, replaced)
        os.replace(temporary, path)
    finally:
        if replaced.exists() and not path.exists():  # failed or interrupted between the two renames
            os.replace(replaced, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def si(number: float) -> str:
    """Three digits and a prefix before the unit: `si(4.12e11) + "FLOP/s"` is "412 GFLOP/s"."""
    number = float(f"{number:.3g}")
    for factor, prefix in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:#.3g}".rstrip(".") + f" {prefix}"
    return f"{number:g} "


def dollars(amount: float) -> str:
    """Money for people: "$1,234.56", and small sums by two digits that count, "$0.0031"."""
    return f"${amount:,.2f}" if amount >= 0.995 or amount == 0 else f"${amount:.2g}"


def duration(seconds: float) -> str:
    """A time for people: "0.29 s", "45 s", "12 min", "3 h 5 min", "2 d 4 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
