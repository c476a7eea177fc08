"""The run log: metrics that survive kills and are dropped where a resumed run writes them again."""

import json

import pytest

from nanochat.common import UserError
from nanochat.training import run_log
from nanochat.training.run_log import RunLog, read_metrics


def write(path, stage, steps, start=0):
    with RunLog(path, stage, start, start + len(steps)) as log:
        for step in steps:
            log.record(step, loss=step / 2)


def test_records_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, "base", [0, 1, 2])
    write(path, "chat", [0, 1])
    records = read_metrics(path)
    assert [(record["stage"], record["step"], record["loss"]) for record in records] == [
        ("base", 0, 0.0), ("base", 1, 0.5), ("base", 2, 1.0), ("chat", 0, 0.0), ("chat", 1, 0.5),
    ]  # fmt: skip


def test_each_record_is_on_disk_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with RunLog(path, "base", 0, 9) as log:
        log.record(0, loss=3.5)
        assert read_metrics(path) == [{"stage": "base", "step": 0, "loss": 3.5}]


def test_no_file_no_records(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_last_line_cut_off_is_passed_over(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    write(path, "base", [0, 1, 2])
    path.write_text(path.read_text().rstrip("\n")[:-cut])
    assert [record["step"] for record in read_metrics(path)] == [0, 1]
    write(path, "base", [2, 3], start=2)  # and the next session does not write behind the half line
    assert [record["step"] for record in read_metrics(path)] == [0, 1, 2, 3]


def test_a_broken_line_elsewhere_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "base", "step": 0}\nnonsense\n{"stage": "base", "step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl line 2 is not a step's record.*delete the line"):
        read_metrics(path)


@pytest.mark.parametrize("line", ["[1, 2]", "7", '{"loss": 1.0}', '{"stage": "base"}'])
def test_a_line_of_another_shape_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"stage": "base", "step": 0}}\n{line}\n{{"stage": "base", "step": 2}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl line 2"):
        read_metrics(path)


def test_the_resumed_steps_and_only_they_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, "base", range(8))
    write(path, "chat", range(5))
    with RunLog(path, "base", 3, 8):
        pass
    left = [(record["stage"], record["step"]) for record in read_metrics(path)]
    assert left == [("base", step) for step in range(3)] + [("chat", step) for step in range(5)]


def test_in_a_pipe_a_line_now_and_then_and_one_at_the_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_log, "LINE_EVERY_SECONDS", 3600.0)
    with RunLog(tmp_path / "metrics.jsonl", "base", 0, 50) as log:
        for step in range(50):
            log.show(step + 1, f"loss {step}.0")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and lines[0].startswith("base 50/50 loss 49.0")
    assert "\x1b" not in lines[0]


def test_the_file_is_lines_of_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, "base", [0, 1])
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1]
