"""The tokenizer of a run."""

import pytest
from toy_data import write_corpus
from transformers import AutoTokenizer

from nanochat.common import UserError
from nanochat.stages import tokenizer as stage
from nanochat.stages.run import Run


def test_it_is_trained_once_and_reported(tmp_path, capsys):
    data = str(write_corpus(tmp_path / "corpus.jsonl"))
    run = Run(tmp_path / "run")
    made = stage.tokenizer_of(run, data, 300)
    out = capsys.readouterr().out
    assert "tokenizer of 300 tokens" in out
    for kind in stage.KINDS:
        assert kind in out
    again = stage.tokenizer_of(run, "no such file.txt", 999)
    assert again.get_vocab() == made.get_vocab()
    assert type(AutoTokenizer.from_pretrained(run.tokenizer)).__name__ == "NanoChatTokenizer"


def test_held_out_text_is_not_learnt_from(tmp_path, monkeypatch):
    seen = []
    real = stage.train_tokenizer
    monkeypatch.setattr(stage, "train_tokenizer", lambda texts, size: real(seen.extend(texts) or seen, size))
    data = str(write_corpus(tmp_path / "corpus.jsonl"))
    stage.train(tmp_path / "out", data, 280)
    held_out = set(stage.read_documents(data, "val"))
    assert held_out and not held_out & set(seen)


@pytest.mark.parametrize(("limit", "value"), [("MOST_DOCUMENTS", 10), ("MOST_CHARACTERS", 500)])
def test_only_the_beginning_of_a_large_corpus_is_read(tmp_path, monkeypatch, limit, value):
    monkeypatch.setattr(stage, limit, value)
    data = str(write_corpus(tmp_path / "corpus.jsonl"))
    assert 1 < len(list(stage._beginning(data))) <= 10


def test_a_folder_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        stage.train(tmp_path / "out", "primer", 300)


def test_a_refused_size_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="at least 265"):
        stage.train(tmp_path / "out", str(write_corpus(tmp_path / "corpus.jsonl")), 10)
    assert not (tmp_path / "out").exists()
