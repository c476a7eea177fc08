"""Runs side by side: one self-contained HTML page with their curves, final figures and differing recipes."""

import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.common import atomic_file, dollars, duration, si
from nanochat.evaluation.curves import clock, median_of, series, smoothed, svg, thinned, without_steep_start
from nanochat.evaluation.report_card import STAGE_NAMES, page
from nanochat.model.accounting import cost

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#3b6ea8", "#d9822b", "#3a8f5c", "#b23b4b", "#7a5ba6", "#8c6d46", "#d06ba6", "#6b7280", "#a3a72d", "#2fa4b7")
LINES = ("solid", "dashed", "dotted")  # once the colours are used up
AXES = {"step": "step", "tokens": "tokens", "seconds": "time", "flops": "FLOPs"}


@dataclasses.dataclass(frozen=True)
class ComparedStage:
    """One stage of one run.

    Attributes:
        run: its name, unlike those of the others.
        stage: "base" or "chat".
        records: of `metrics.jsonl`, at least one; with "tokens" and "flops".
        steps: of its recipe; more than there are records while it trains.
        parameters: of the model.
        recipe: every setting by its name.
    """

    run: str
    stage: str
    records: Sequence[dict[str, Any]]
    steps: int
    parameters: int
    recipe: dict[str, Any]

    def figures(self, price_per_hour: float | None) -> dict[str, str]:
        """Final figures for people, by the headings of their columns."""
        last, done = self.records[-1], len(self.records)
        _, losses = series(self.records, "step", "loss")
        _, bits = series(self.records, "step", "val_bpb")
        share = median_of(self.records, "mfu")
        figures = {
            "run": self.run,
            "steps": f"{done:,}" if done == self.steps else f"{done:,} of {self.steps:,}",
            "parameters": si(self.parameters),
            "tokens": si(last["tokens"]),
            "FLOPs": f"{last['flops']:.2e}",
            "time": duration(last["seconds"]),
            "tokens/s": f"{median_of(self.records, 'tokens_per_second'):,.0f}",
            "of the peak": "" if share is None else f"{100 * share:.0f} %",
            "loss": f"{smoothed(losses)[-1]:.3f}",
            "bits per byte": f"{bits[-1]:.4f}" if len(bits) else "",
        }
        if price_per_hour is not None:
            figures["cost"] = dollars(cost(last["seconds"], price_per_hour))
        return figures


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Stages of runs to compare, in the order they are shown in; `price_per_hour` of the machine is in dollars."""

    stages: Sequence[ComparedStage]
    price_per_hour: float | None = None

    def of(self, stage: str) -> list[ComparedStage]:
        """All runs that have begun this stage."""
        return [compared for compared in self.stages if compared.stage == stage]

    def figures(self, stage: str) -> list[dict[str, str]]:
        """A row of final figures for each run."""
        return [compared.figures(self.price_per_hour) for compared in self.of(stage)]

    def differences(self, stage: str) -> dict[str, list[str]]:
        """Settings that are not the same in all runs, with the value of each run ("" where it has none)."""
        recipes = [compared.recipe for compared in self.of(stage)]
        names = dict.fromkeys(name for recipe in recipes for name in recipe)
        values = {name: [_text(recipe.get(name)) for recipe in recipes] for name in names}
        return {name: texts for name, texts in values.items() if len(set(texts)) > 1}

    def write(self, path: Path) -> None:
        """Write the page, atomically."""
        with atomic_file(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")

    def html(self) -> str:
        """The page as HTML."""
        sections = []
        for stage, title in STAGE_NAMES.items():
            compared = self.of(stage)
            if compared:
                sections += [
                    f"<h2>{title}</h2>",
                    _legend(compared),
                    svg(_curves(compared)),
                    _table(self.figures(stage)),
                ]
                sections.append("<p class=dim>Speed is the median over the steps, the loss a running mean.</p>")
            differences = self.differences(stage)
            if differences:
                rows = [{"setting": name} | dict(zip(_names(compared), texts)) for name, texts in differences.items()]
                sections += ["<h3>What differs</h3>", _table(rows)]
        runs = ", ".join(dict.fromkeys(compared.run for compared in self.stages))
        return page(f"NanoChat: {runs}", sections)


def _curves(stages: Sequence[ComparedStage]) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(13, 6.2), layout="constrained")
    upper, lower = figure.subplots(2, len(AXES), sharey="row")
    for number, compared in enumerate(stages):
        color, line = _style(number)
        style = {"color": color, "linestyle": line}
        for x, above, below in zip(AXES, upper, lower, strict=True):
            xs, losses = series(compared.records, x, "loss")
            above.plot(*thinned(xs, smoothed(losses)), linewidth=1.4, **style)
            below.plot(*series(compared.records, x, "val_bpb"), marker="o", markersize=3, linewidth=1.4, **style)
    for (x, label), above, below in zip(AXES.items(), upper, lower, strict=True):
        for axes in (above, below):
            axes.grid(alpha=0.25)
            axes.set_xlim(left=0)
            axes.set_xlabel(label)
            if x == "seconds":
                clock(axes)
            else:
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))
                axes.locator_params(axis="x", nbins=5)
    upper[0].set_ylabel("training loss (nats per token)")
    lower[0].set_ylabel("held-out bits per byte")
    without_steep_start(upper[0], [smoothed(series(compared.records, "step", "loss")[1]) for compared in stages])
    return figure


def _style(number: int) -> tuple[str, str]:
    return COLORS[number % len(COLORS)], LINES[number // len(COLORS) % len(LINES)]


def _legend(stages: Sequence[ComparedStage]) -> str:
    """Which line is whose, outside of the picture: its fonts don't have all the letters that a name may have."""
    entries = []
    for number, compared in enumerate(stages):
        color, line = _style(number)
        entries.append(f'<i style="border-top: 3px {line} {color}"></i>{html.escape(compared.run)}')
    return f"<p class=legend><span>{'</span><span>'.join(entries)}</span></p>"


def _names(stages: Sequence[ComparedStage]) -> list[str]:
    return [compared.run for compared in stages]


def _table(rows: Sequence[dict[str, str]]) -> str:
    """Rows with the same headings as an HTML table."""
    head = "".join(f"<th>{html.escape(name)}" for name in rows[0])
    lines = ("".join(f"<td>{html.escape(text)}" for text in row.values()) for row in rows)
    return f"<table class=figures><tr>{head}{''.join(f'<tr>{line}' for line in lines)}</table>"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
