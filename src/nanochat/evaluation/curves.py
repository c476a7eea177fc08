"""Curves of training as SVG: few points however long the run, the same picture for the same numbers."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 600  # of a curve: more than a screen can show
BLUE, PALE, ORANGE = "#3b6ea8", "#a9bdd6", "#d9822b"

Records = Sequence[dict[str, Any]]


def series(records: Records, x: str, y: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The values of `x` and `y` of all records that have both; `x` "step" counts the steps done, from 1."""
    both = [record for record in records if y in record and (x in record)]
    xs = np.array([record[x] for record in both], np.float64)
    return xs + (x == "step"), np.array([record[y] for record in both], np.float64)


def median_of(records: Records, name: str) -> float | None:
    """The median of a value over the records that have it; None if none has."""
    values = [record[name] for record in records if name in record]
    return float(np.median(values)) if values else None


def thinned(
    xs: NDArray[np.float64], ys: NDArray[np.float64], most: int = MOST_POINTS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most `most` points: the means of as many stretches of the curve, the last one ending with its last point."""
    if len(xs) <= most:
        return xs, ys
    borders = np.linspace(0, len(xs), most + 1).astype(int)
    counts = np.diff(borders)
    return xs[borders[1:] - 1], np.add.reduceat(ys, borders[:-1]) / counts


def smoothed(ys: NDArray[np.float64]) -> NDArray[np.float64]:
    """The running mean of noisy values, over about a fiftieth of them; the first values count no more than others."""
    keep = 1 - 1 / max(1.0, len(ys) / 50)
    total, weight, means = 0.0, 0.0, np.empty_like(ys)
    for i, y in enumerate(ys):
        total, weight = keep * total + y, keep * weight + 1
        means[i] = total / weight
    return means


def clock(axes: "Axes") -> None:
    """Make seconds on the x-axis readable: in minutes or hours where they are many."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    longest = axes.get_xlim()[1]
    unit, size = ("h", 3600) if longest > 3 * 3600 else ("min", 60) if longest > 3 * 60 else ("s", 1)
    ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(0, longest / size)
    axes.set_xticks([tick * size for tick in ticks if tick * size <= longest])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / size:g}"))
    axes.set_xlabel(f"time ({unit})")


def without_steep_start(axes: "Axes", ys: Sequence[NDArray[np.float64]]) -> None:
    """Cut the first steep fall off the y-axis where it would flatten everything after it."""
    ys = [values for values in ys if len(values)]
    if not ys:
        return
    lowest = min(float(values.min()) for values in ys)
    top = max(float(values[math.ceil(0.05 * (len(values) - 1))]) for values in ys)
    if top > lowest:
        axes.set_ylim(lowest - 0.05 * (top - lowest), top + 0.05 * (top - lowest))


def learning_curves(metrics: Records, stages: dict[str, str]) -> str:
    """Three pictures for each stage there is: loss and held-out bits per byte over steps and over time, and speed.

    `stages` are the names of stages in the metrics, with their titles.
    """
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    there = [name for name in stages if any(record["stage"] == name for record in metrics)]
    figure = Figure(figsize=(11, 2.9 * max(1, len(there))), layout="constrained")
    rows: Any = figure.subplots(len(there), 3, squeeze=False) if there else []
    for stage, (steps, times, speed) in zip(there, rows, strict=True):
        records = [record for record in metrics if record["stage"] == stage]
        for axes, x in ((steps, "step"), (times, "seconds")):
            _loss(axes, records, x)
        steps.set_title(stages[stage], loc="left", fontweight="bold")
        clock(times)
        _speed(speed, records)
    return svg(figure)


def _loss(axes: "Axes", records: Records, x: str) -> None:
    xs, losses = series(records, x, "loss")
    axes.plot(*thinned(xs, losses), color=PALE, linewidth=0.8)
    axes.plot(*thinned(xs, smoothed(losses)), color=BLUE, linewidth=1.4)
    axes.set_xlabel(x)
    axes.set_ylabel("training loss (nats per token)", color=BLUE)
    right = axes.twinx()
    right.plot(*thinned(*series(records, x, "val_bpb")), "o-", color=ORANGE, markersize=3)
    right.set_ylabel("held-out bits per byte", color=ORANGE)
    axes.set_ylim(bottom=0)
    right.set_ylim(bottom=0)


def _speed(axes: "Axes", records: Records) -> None:
    axes.plot(*thinned(*series(records, "step", "tokens_per_second")), color=BLUE, linewidth=1.0)
    axes.set_xlabel("step")
    axes.set_ylabel("tokens per second", color=BLUE)
    axes.set_ylim(bottom=0)
    share, speed = median_of(records, "mfu"), median_of(records, "tokens_per_second")
    if share and speed:  # the same curve on another scale
        right = axes.twinx()
        right.set_ylim(0, 100 * share / speed * axes.get_ylim()[1])
        right.set_ylabel("% of the machine's peak", color=BLUE)


def svg(figure: "Figure") -> str:
    """The figure as an HTML element, self-contained and the same for the same curves."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "nanochat"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return f"<figure>{text[text.index('<svg') :]}</figure>"
