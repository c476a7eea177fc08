"""Comparing runs on disk: finished, in progress, of older versions; and what is no run at all."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from nanochat.common import UserError
from nanochat.stages.compare import compare


@pytest.fixture
def run(finished):
    return finished / "run"


@pytest.fixture
def other(run):
    """A second run, stopped after its third step, with another rate."""
    folder = run.parent / "other"
    folder.mkdir()
    recipes = json.loads((run / "recipe.json").read_text())
    recipes["base"]["recipe"]["matrix_lr"] = 0.125
    (folder / "recipe.json").write_text(json.dumps({"base": recipes["base"]}))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:3]) + lines[3][:20])
    return folder


def test_two_runs_one_of_them_in_progress(run, other, tmp_path, capsys):
    comparison = compare([run, other], tmp_path / "out" / "page.html")
    html = (tmp_path / "out" / "page.html").read_text()
    out = capsys.readouterr().out
    for text in (html, out):
        assert "other" in text and "3 of 10" in text and "pretraining" in text and "chat tuning" in text
    assert comparison.differences("base") == {"matrix_lr": ["0.02", "0.125"]}
    assert "page.html" in out and max(map(len, out.splitlines())) <= 120


def test_one_run_is_enough(run, tmp_path):
    [base, chat] = compare([run], tmp_path / "page.html", price_per_hour=2.0).stages
    assert (base.stage, chat.stage) == ("base", "chat")
    weights = load_file(run / "base" / "model.safetensors")
    assert base.parameters == chat.parameters == sum(tensor.numel() for tensor in weights.values())
    assert base.records[-1]["tokens"] == 6400


def test_a_run_given_twice_is_one(run, tmp_path):
    assert len(compare([run, run], tmp_path / "page.html").stages) == 2


def test_runs_of_one_name_are_told_apart_by_their_paths(run, tmp_path):
    again = tmp_path / "elsewhere" / "run"
    shutil.copytree(run, again)
    names = {stage.run for stage in compare([run, again], tmp_path / "page.html").stages}
    assert names == {str(run), str(again)}


def test_metrics_of_older_versions_are_counted_by_the_recipe(run, tmp_path):
    [now, *_] = compare([run], tmp_path / "page.html").stages
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        for name in ("tokens", "flops", "mfu", "samples"):
            record.pop(name, None)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    [old, *_] = compare([run], tmp_path / "page.html").stages
    assert [(r["tokens"], r["flops"]) for r in old.records] == [(r["tokens"], r["flops"]) for r in now.records]


@pytest.mark.parametrize("kind", ["nothing", "empty folder", "file", "model folder"])
def test_what_is_no_run_is_named(run, tmp_path, kind):
    folder = tmp_path / "no run"
    if kind == "empty folder":
        folder.mkdir()
    elif kind == "file":
        folder.write_text("text")
    elif kind == "model folder":
        folder = run / "base"
    with pytest.raises(UserError, match=rf"{folder.name} is not the folder of a run"):
        compare([run, folder], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("metrics", [None, "", '{"stage": "ba'])
def test_a_run_without_a_step_yet_is_named(run, tmp_path, metrics):
    (run / "metrics.jsonl").unlink()
    if metrics is not None:
        (run / "metrics.jsonl").write_text(metrics)
    with pytest.raises(UserError, match=r"metrics\.jsonl has no step yet; wait"):
        compare([run], tmp_path / "page.html")


def test_damaged_files_are_named(run, tmp_path):
    (run / "recipe.json").write_text("[1")
    with pytest.raises(UserError, match=r"recipe\.json is damaged"):
        compare([run], tmp_path / "page.html")


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_an_impossible_price_is_named(run, tmp_path, price):
    with pytest.raises(UserError, match=f"price_per_hour must be .* got {price}"):
        compare([run], tmp_path / "page.html", price)


def test_the_page_does_not_take_the_place_of_a_folder(run):
    with pytest.raises(UserError, match="run is a folder; --out names the page"):
        compare([run], run)
