"""The speedrun: everything in one go, at toy size; run again, it answers at once."""

import dataclasses
import json
import re
import shutil

import pytest
from toy_data import write_chats, write_corpus

from nanochat.common import UserError
from nanochat.stages import speedrun as stage
from nanochat.stages.options import SpeedrunOptions
from nanochat.stages.run import Run
from nanochat.training.loop import Interrupted, TrainingLoop
from nanochat.training.run_log import read_metrics


@pytest.fixture(scope="session")
def own_data(tmp_path_factory):
    """A speedrun on own text and chats, whose options are the fixture's value."""
    folder = tmp_path_factory.mktemp("own data with blanks")
    options = SpeedrunOptions(
        data=str(write_corpus(folder / "corpus.jsonl")), chat=str(write_chats(folder / "chats.jsonl")),
        run=folder / "run", depth=1, vocab_size=350, seq_len=128, tokens=20_000,
    )  # fmt: skip
    stage.speedrun(options)
    return options


@pytest.fixture
def no_training(monkeypatch):
    def forbidden(*arguments):
        raise AssertionError("it trains again")

    monkeypatch.setattr(TrainingLoop, "run", forbidden)


def test_own_data_makes_a_whole_run(own_data):
    names = {path.name for path in own_data.run.iterdir() if not path.name.startswith(".")}
    assert names == {"recipe.json", "tokenizer", "data", "base", "chat", "metrics.jsonl", "report.html"}
    page = (own_data.run / "report.html").read_text(encoding="utf-8")
    assert "pretraining" in page and "chat tuning" in page and "<svg" in page
    assert "What does the" in page, "held-out questions of the chats"
    assert "Skills" not in page, "the Primer's skills say nothing about other data"
    assert not re.search(r'(src|href)="?https?:', page)


def test_again_it_answers_at_once(own_data, no_training, capsys):
    before = {path: path.stat().st_mtime_ns for path in own_data.run.rglob("*") if path.name != ".lock"}
    stage.speedrun(own_data)
    out = capsys.readouterr().out
    assert out.count("> What does the") == 3
    assert f"nanochat chat '{own_data.run / 'chat'}'" in out
    assert f"nanochat serve '{own_data.run / 'chat'}'  and open http://127.0.0.1:8000/" in out
    after = {path: path.stat().st_mtime_ns for path in own_data.run.rglob("*") if path.name != ".lock"}
    assert {path for path in before if path.is_file() and after[path] != before[path]} == set()


def test_what_is_not_said_is_not_compared(own_data, no_training):
    stage.speedrun(dataclasses.replace(own_data, vocab_size=None, seq_len=None, tokens=None))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("depth", 2), ("seed", 1), ("tokens", 7), ("vocab_size", 351), ("seq_len", 64), ("chat_tokens", 9)],
        *[("chat_epochs", 2), ("data", "primer"), ("chat", "primer")],
    ],
)
def test_other_options_are_refused(own_data, no_training, name, value):
    with pytest.raises(UserError, match=rf"holds a (base|chat) model of .*, not {value}; choose another --run"):
        stage.speedrun(dataclasses.replace(own_data, **{name: value}))


def test_a_smaller_vocabulary_than_asked_for_is_still_the_same_run(tmp_path):
    """The text has too few merges for 5,000 tokens; the same command again must not be refused for that."""
    options = SpeedrunOptions(
        data=str(write_corpus(tmp_path / "corpus.jsonl", 100)), chat=str(write_chats(tmp_path / "chats.jsonl")),
        run=tmp_path / "run", depth=1, vocab_size=5000, seq_len=32, tokens=4096,
    )  # fmt: skip
    stage.speedrun(options)
    assert Run(options.run).load_recipe("base")[0].vocab_size < 5000
    stage.speedrun(options)


@pytest.mark.parametrize("name", ["base", "chat"])
def test_stopped_anywhere_the_same_command_goes_on(own_data, tmp_path, interrupt_at, name):
    options = dataclasses.replace(own_data, run=tmp_path / "run")
    undo = interrupt_at(name, 0)
    with pytest.raises(Interrupted):
        stage.speedrun(options)
    undo()
    stage.speedrun(options)
    curves = [
        [(record["stage"], record["step"], record["loss"]) for record in read_metrics(run / "metrics.jsonl")]
        for run in (options.run, own_data.run)
    ]
    assert curves[0] == curves[1]


def test_a_report_that_is_missing_is_written_again(own_data, tmp_path, no_training):
    run = tmp_path / "run"
    shutil.copytree(own_data.run, run)
    (run / "report.html").unlink()
    stage.speedrun(dataclasses.replace(own_data, run=run))
    assert (run / "report.html").read_text().startswith("<!doctype html>")


def test_chats_that_open_with_a_system_message_show_the_users_question(tmp_path, capsys):
    chats = [
        {"messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "content": "An answer."},
        ]}
        for number in range(60)
    ]  # fmt: skip
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    stage.speedrun(
        SpeedrunOptions(
            data=str(write_corpus(tmp_path / "corpus.jsonl")), chat=str(tmp_path / "chats.jsonl"),
            run=tmp_path / "run", depth=1, vocab_size=300, seq_len=64, tokens=4096,
        )
    )  # fmt: skip
    out = capsys.readouterr().out
    assert "> Question" in out and "> Be brief." not in out


def test_a_language_without_blanks(tmp_path):
    """Eight words of it are a whole document: what the report begins with still has to fit the context."""
    sentence = "夜は寒く村の誰も火曜日から渡し守を見ていなかった"
    texts = [{"text": f"{number}" + sentence * 12} for number in range(80)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"{number}" + sentence * 4},
                {"role": "assistant", "content": "はい"},
            ]
        }
        for number in range(60)
    ]
    chats += [
        {"messages": [{"role": "user", "content": f"元気{number}"}, {"role": "assistant", "content": "はい"}]}
        for number in range(60)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    stage.speedrun(
        SpeedrunOptions(
            data=str(tmp_path / "corpus.jsonl"), chat=str(tmp_path / "chats.jsonl"),
            run=tmp_path / "run", depth=1, vocab_size=270, seq_len=64, tokens=4096,
        )
    )  # fmt: skip
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_the_primer_at_toy_size(tmp_path, capsys):
    options = SpeedrunOptions(
        run=tmp_path / "run", depth=1, vocab_size=600, seq_len=256, tokens=6_000, chat_tokens=6_000
    )
    stage.speedrun(options)
    out = capsys.readouterr().out
    for question in stage.DEMO_QUESTIONS:
        assert f"> {question}" in out
    assert "average" in out and "report.html" in out
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Skills" in page and "Wrong answers" in page
    stage.speedrun(options)
    assert "average" not in capsys.readouterr().out, "the second time nothing is evaluated again"
