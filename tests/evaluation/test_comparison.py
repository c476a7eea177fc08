"""Runs side by side: figures, differences and curves, for any number of runs in any state."""

import dataclasses

import pytest

from nanochat.evaluation.comparison import ComparedStage, Comparison

HOSTILE = '<script>alert("x")</script>'


def compared(run="one", stage="base", done=20, steps=20, rate=1.0, **recipe):
    records = [
        {"step": step, "loss": 4 - rate * step / 10, "tokens": 1000 * (step + 1), "flops": 5 * 10**6 * (step + 1)}
        | {"seconds": 90.0 * (step + 1), "tokens_per_second": 500.0, "mfu": 0.25}
        | ({"val_bpb": 2 - rate * step / 20} if step % 5 == 4 else {})
        for step in range(done)
    ]
    return ComparedStage(run, stage, records, steps, 1_234_567, {"matrix_lr": 0.02, "depth": 4} | recipe)


def test_the_figures_are_those_of_the_last_step():
    [row] = Comparison([compared()], price_per_hour=3.0).figures("base")
    assert row == {
        "run": "one", "steps": "20", "parameters": "1.23 M", "tokens": "20.0 k", "FLOPs": "1.00e+08", "time": "30 min",
        "tokens/s": "500", "of the peak": "25 %", "loss": "2.100", "bits per byte": "1.0500", "cost": "$1.50",
    }  # fmt: skip


def test_a_run_in_progress_says_how_far_it_is():
    [row] = Comparison([compared(done=3, steps=1500)]).figures("base")
    assert row["steps"] == "3 of 1,500" and row["bits per byte"] == "" and "cost" not in row
    assert "3 of 1,500" in Comparison([compared(done=3, steps=1500)]).html()


def test_only_differing_settings_are_told():
    runs = [compared("one"), compared("two", matrix_lr=0.005, seed=3), compared("three", matrix_lr=0.005)]
    assert Comparison(runs).differences("base") == {"matrix_lr": ["0.02", "0.005", "0.005"], "seed": ["", "3", ""]}
    assert Comparison([compared()]).differences("base") == {}
    assert "What differs" not in Comparison([compared()]).html()


def test_stages_are_compared_apart():
    runs = [compared("one"), compared("one", "chat"), compared("two")]
    html = Comparison(runs).html()
    assert html.count("<svg") == 2 and "pretraining" in html and "chat tuning" in html
    assert [row["run"] for row in Comparison(runs).figures("chat")] == ["one"]


def test_all_runs_are_drawn_over_steps_tokens_time_and_flops():
    html = Comparison([compared("one"), compared("two", rate=0.5)]).html()
    assert html.count("<svg") == 1 and html.count('id="axes_') == 8
    for color in ("#3b6ea8", "#d9822b"):
        assert html.count(f"stroke: {color}") >= 8


@pytest.mark.parametrize("count", [1, 11, 25])
def test_any_number_of_runs(count):
    html = Comparison([compared(f"run {number}") for number in range(count)]).html()
    assert all(f"run {number}<td>" in html for number in range(count))


def test_one_step_is_enough():
    assert "<svg" in Comparison([compared(done=1)]).html()


def test_names_that_matplotlib_would_misread():
    names = ["_hidden", "a $ b $ c", "$\\frac{1}", "狐"]
    html = Comparison([compared(name) for name in names]).html()
    assert all(f"</i>{name}</span>" in html for name in names)


def test_hostile_names_are_only_text():
    run = dataclasses.replace(compared(HOSTILE), recipe={"data": HOSTILE})
    assert "<script" not in Comparison([run, compared()]).html()


def test_it_is_written_whole_and_the_same_each_time(tmp_path):
    comparison = Comparison([compared(), compared("zwei – 狐")])
    comparison.write(tmp_path / "compare.html")
    assert (tmp_path / "compare.html").read_text(encoding="utf-8") == comparison.html()
    assert [file.name for file in tmp_path.iterdir()] == ["compare.html"]
