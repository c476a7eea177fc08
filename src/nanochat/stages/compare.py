"""Comparing runs: what is on disk of them, side by side."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from nanochat.common import UserError
from nanochat.evaluation.comparison import ComparedStage, Comparison
from nanochat.evaluation.report_card import STAGE_NAMES
from nanochat.model.accounting import flops_per_token, parameter_counts
from nanochat.stages.run import Run, console
from nanochat.training.run_log import read_metrics


def compare(runs: Sequence[Path], out: Path, price_per_hour: float | None = None) -> Comparison:
    """Print the runs' final figures and write the page with their curves; runs may still be in progress.

    Raises:
        UserError: if a folder is no run, or its first step is not done yet; if none is given.
    """
    if not runs:
        raise UserError("Name the folder of at least one run, such as runs/demo.")
    if price_per_hour is not None and not 0 <= price_per_hour < math.inf:
        raise UserError(f"price_per_hour must be a number of dollars, at least 0, got {price_per_hour}.")
    folders = list(dict.fromkeys(runs))
    if out in folders or out.is_dir():
        raise UserError(f"{out} is a folder; --out names the page to write, such as compare.html.")
    stages = [stage for name, folder in zip(_names(folders), folders) for stage in _stages(name, folder)]
    comparison = Comparison(stages, price_per_hour)
    for stage, title in STAGE_NAMES.items():
        if comparison.of(stage):
            console.print(_terminal_table(title, comparison.figures(stage)))
    comparison.write(out)
    console.print(f"curves: {out}")
    return comparison


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names; all of their paths where two are called the same."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _stages(name: str, folder: Path) -> Iterator[ComparedStage]:
    run = Run(folder)
    begun = [stage for stage in STAGE_NAMES if folder.is_dir() and run.is_begun(stage)]
    if not begun:
        raise UserError(f"{folder} is not the folder of a run: nothing has been trained there.")
    metrics = read_metrics(run.metrics)
    if not any(record["stage"] in begun for record in metrics):
        raise UserError(f"{run.metrics} has no step yet; wait for the first one.")
    for stage in begun:
        recipe, origin = run.load_recipe(stage)
        config = recipe.config()
        per_token = flops_per_token(config, recipe.seq_len)
        records: list[dict[str, Any]] = []
        for record in metrics:
            if record["stage"] == stage:
                tokens = (record["step"] + 1) * recipe.batch_tokens  # runs of older versions don't say
                records.append({"tokens": tokens, "flops": tokens * per_token} | record)
        if records:
            settings = origin | vars(recipe)
            yield ComparedStage(name, stage, records, recipe.steps, parameter_counts(config)["total"], settings)


def _terminal_table(title: str, rows: list[dict[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    names = [name for name in rows[0] if name not in ("parameters", "FLOPs", "loss")]  # there is room on the page
    for name in names:
        if name == "run":
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="right", no_wrap=" " not in name)  # headings of several words may wrap
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table
