"""A run's token stores: begun, killed, gone on with; and how that shows."""

import dataclasses
import io

import pytest
from rich.console import Console
from toy_data import pretrain_options

from nanochat.data import tokenization
from nanochat.data.tokenization import Status
from nanochat.stages import tokenizing
from nanochat.stages.pretrain import pretrain
from nanochat.stages.tokenizing import TokenizingBar


def test_stopped_while_tokenizing_the_same_command_goes_on(finished, tmp_path, monkeypatch, capsys):
    options = dataclasses.replace(pretrain_options(finished), run=tmp_path / "run")
    commit = tokenization.StoreWriter.commit

    def stop(self, state):
        commit(self, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tokenization.StoreWriter, "commit", stop)
        patch.setattr(tokenization, "COMMIT_EVERY_SECONDS", 0.0)
        patch.setattr(tokenization, "WRITTEN_AT_ONCE", 1000)
        with pytest.raises(KeyboardInterrupt):
            pretrain(options)
    assert "Stopped; the same command goes on with" in capsys.readouterr().out
    assert not (tmp_path / "run" / "base").exists()
    pretrain(options)
    assert "base train data: Going on after " in capsys.readouterr().out
    for store in ("base-train", "base-val"):
        ours, whole = (run / "data" / store / "tokens.bin" for run in (tmp_path / "run", finished / "run"))
        assert ours.read_bytes() == whole.read_bytes()


def test_sources_by_weight_reach_the_store(finished, tmp_path, capsys):
    corpus = finished / "corpus.jsonl"
    (tmp_path / "small.txt").write_text("A fox is a fox. <|endoftext|>\n" * 3 + "\n<|endoftext|>\n".join("abcdefgh"))
    options = dataclasses.replace(pretrain_options(finished), run=tmp_path / "run")
    pretrain(dataclasses.replace(options, data=f"{corpus}=3,{tmp_path / 'small.txt'}=1"))
    lines = [line for line in capsys.readouterr().out.splitlines() if " epochs" in line]
    assert [line.split(": ")[0] for line in lines] == ["base train data"] * 2
    shares = [float(line.partition(" tokens (")[2].partition("%")[0]) for line in lines]
    assert shares == pytest.approx([75, 25], abs=0.2)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(tokenizing.time, "monotonic", lambda: now[0])
    return now


def test_in_a_pipe_a_line_now_and_then(clock):
    out = io.StringIO()
    with TokenizingBar("base train data", Console(file=out, soft_wrap=True)) as bar:
        for second in range(40):
            clock[0] += 1
            bar.show(Status(second * 10, second * 1_000_000, 5_000_000 * (second + 1), 0.5 + second / 100))
    assert out.getvalue().splitlines() == [
        "base train data: 150 documents, 15,000,000 tokens, 5.0 MB/s, 65%, 35 s left",
        "base train data: 310 documents, 31,000,000 tokens, 5.0 MB/s, 81%, 19 s left",
    ]


def test_where_the_size_is_not_known_no_share_is_shown(clock):
    out = io.StringIO()
    with TokenizingBar("chat train data", Console(file=out, force_terminal=True, width=120, _environ={})) as bar:
        bar.show(Status(1, 2, 3, None))
        clock[0] += 2
        bar.show(Status(1000, 2000, 4_000_003, None))
    assert "1,000 documents, 2,000 tokens, 2.0 MB/s" in out.getvalue() and "%" not in out.getvalue().split("MB/s")[1]
