"""Tokenizing that is killed, stopped, out of disk space, or asked for more than memory holds."""

import contextlib
import dataclasses
import json
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest

from nanochat.common import UserError
from nanochat.data import tokenization
from nanochat.data.source import Generated
from nanochat.data.sources import open_conversations, open_documents
from nanochat.data.tokenization import ConversationEncoder, DocumentEncoder, tokenize


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Chunks, writes and commits so small that a toy corpus takes hundreds."""
    monkeypatch.setattr(tokenization, "CHUNK_CHARACTERS", 300)
    monkeypatch.setattr(tokenization, "WRITTEN_AT_ONCE", 200)
    monkeypatch.setattr(tokenization, "COMMIT_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(tokenization, "COMMIT_SHARE", 1e9)


@pytest.fixture
def names(tmp_path):
    """A folder of several files, and two more sources."""
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [f"Text {number}: the cat sat on the log. " * (number % 5 + 1) for number in range(400)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.jsonl").write_text(lines[: len(lines) // 2].rpartition("\n")[0])
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()[:8000].rpartition(b"\n")[0]))
    (folder / "c.txt").write_text("Many short lines of some length, and now and then none.\n" * 300)
    pq.write_table(pa.table({"text": texts[200:]}), folder / "d.parquet", row_group_size=70)
    (tmp_path / "small.jsonl").write_text("".join(json.dumps({"text": f"dog {n}"}) + "\n" for n in range(40)))
    return {"folder": str(folder), "small": str(tmp_path / "small.jsonl")}


def contents(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def in_child(work):
    """Run `work` in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except KeyboardInterrupt:
            os._exit(130)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    return child


@pytest.mark.parametrize("source", ["{folder}", "{small},{folder},{small}", "{folder}=3,{small}=1,primer=0.5"])
def test_killed_at_any_moment_the_store_is_the_same(names, source, tiny_tokenizer, tmp_path):
    def work(folder, report=None):
        corpus = open_documents(source.format(**names), "train")
        tokenize(folder, corpus, DocumentEncoder(tiny_tokenizer), report=report or print, workers=2)

    begun = time.monotonic()
    work(tmp_path / "whole")
    seconds = time.monotonic() - begun
    rng = random.Random(source)
    tokens = [0]
    for _ in range(100):  # until one gets to the end
        child = in_child(lambda: work(tmp_path / "killed"))
        time.sleep(rng.uniform(0.02, max(0.05, seconds / 3)))
        os.kill(child, signal.SIGKILL)
        if os.waitpid(child, 0)[1] == 0:
            break
        progress = tmp_path / ".killed.partial" / "progress.json"
        if progress.exists():
            tokens.append(json.loads(progress.read_text())["tokens"])
    assert len(set(tokens)) > 1 and tokens == sorted(tokens)
    told = []
    work(tmp_path / "killed", told.append)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".killed")]


def test_conversations_go_on_with_their_counts(tiny_tokenizer, tmp_path, monkeypatch):
    chats = [
        [{"role": "user", "content": "x" * (number % 30)}, {"role": "assistant", "content": f"{number}"}]
        for number in range(1, 200)
        if number % 30
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))

    def work(folder):
        told = []
        corpus, encoder = (
            open_conversations(str(tmp_path / "a.jsonl"), "train"),
            ConversationEncoder(tiny_tokenizer, 20),
        )
        tokenize(folder, corpus, encoder, report=told.append)
        return told[-1]

    whole = work(tmp_path / "whole")
    assert "were dropped" in whole
    with stopped_after(monkeypatch, 5):
        work(tmp_path / "stopped")
    assert work(tmp_path / "stopped") == whole
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@contextlib.contextmanager
def stopped_after(monkeypatch, commits):
    """Ctrl-C right after so many commits."""
    real = tokenization.StoreWriter.commit
    left = iter(range(commits))

    def commit(self, state):
        real(self, state)
        if next(left, None) is None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tokenization.StoreWriter, "commit", commit)
        yield


def test_what_was_begun_with_other_settings_is_not_gone_on_with(names, tiny_tokenizer, tmp_path, monkeypatch):
    def work(source="small", split="train", **options):
        told = []
        corpus = open_documents(names[source], split)
        tokenize(tmp_path / "a", corpus, DocumentEncoder(tiny_tokenizer), report=told.append, **options)
        return " ".join(told)

    with stopped_after(monkeypatch, 3):
        work("folder")
    left = tmp_path / ".a.partial" / "progress.json"
    begun, progress = left.read_text(), json.loads(left.read_text())
    assert f"{progress['tokens']:,} tokens of other data, another tokenizer or another length" in work()
    (tmp_path / ".a.partial").mkdir()
    left.write_text(begun)  # without the files it speaks of: damaged
    assert "thrown away" in work("folder")
    assert contents(tmp_path / "a") and work("folder") == ""


def test_ctrl_c_ends_it_at_once(tiny_tokenizer, tmp_path):
    def work():
        tokenize(tmp_path / "a", open_documents("primer", "train"), DocumentEncoder(tiny_tokenizer))

    child = in_child(work)
    deadline = time.monotonic() + 20
    while not (tmp_path / ".a.partial" / "progress.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    begun = time.monotonic()
    os.kill(child, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert time.monotonic() - begun < 2
    tokens = json.loads((tmp_path / ".a.partial" / "progress.json").read_text())["tokens"]
    assert tokens > 0


def test_a_full_disk_is_told_and_gone_on_after(names, tiny_tokenizer, tmp_path):
    def work():
        tokenize(
            tmp_path / "a", open_documents(names["folder"], "train"), DocumentEncoder(tiny_tokenizer), report=print
        )

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        with pytest.raises(UserError, match=r"a can't be written \(File too large\): make room"):
            work()

    assert os.waitpid(in_child(full), 0)[1] == 0
    assert json.loads((tmp_path / ".a.partial" / "progress.json").read_text())["tokens"] > 1000
    work()
    corpus = open_documents(names["folder"], "train")
    tokenize(tmp_path / "b", corpus, DocumentEncoder(tiny_tokenizer))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_little_is_in_memory_at_a_time(tiny_tokenizer, tmp_path):
    """Of several endless sources, what was read and is not written yet stays small."""
    read = written = 0

    def texts():
        nonlocal read
        while True:
            text = "some text or other " * (1 + read % 7)
            read += len(text)
            yield text

    def show(status):
        nonlocal written, most
        written = status.text_bytes
        most = max(most, read - written)

    most = 0
    corpus = open_documents("primer,primer,primer", "train")
    sources = [Generated(f"{number}", 0, texts) for number in range(3)]
    corpus = dataclasses.replace(corpus, sources=sources)
    tokenize(tmp_path / "a", corpus, DocumentEncoder(tiny_tokenizer), max_tokens=100_000, workers=2, progress=show)
    chunk = 300 + 7 * 19
    assert written > 100_000 and most <= 3 * (2 * 2 + 2) * chunk + 200 * 4


def test_a_huge_document_is_one_of_a_kind(tiny_tokenizer, tmp_path):
    huge = "some words and\n" * 400_000
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ("one", huge, "three", "x"))
    )
    corpus = open_documents(str(tmp_path / "a.jsonl"), "train")
    store = tokenize(tmp_path / "s", corpus, DocumentEncoder(tiny_tokenizer))
    assert store.meta.text_bytes > len(huge)
