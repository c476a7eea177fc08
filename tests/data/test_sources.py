import itertools
import json
import sys
import types
from pathlib import Path

import pytest

from nanochat.common import UserError
from nanochat.data.sources import open_documents, read_conversations, read_documents

REAL = Path("/work/shared/data")
real_data = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real data of {REAL} is not here")


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chat(text):
    return [{"role": "user", "content": text}, {"role": "assistant", "content": text.upper()}]


def both(source):
    return list(read_documents(source, "train")), list(read_documents(source, "val"))


@pytest.mark.parametrize(
    ("n", "least", "most"), [(2, 1, 1), (19, 1, 1), (200, 10, 10), (1999, 99, 99), (9000, 60, 120)]
)
def test_the_split_parts_what_is_there(tmp_path, n, least, most):
    texts = [f"document {i}" for i in range(n)]
    train, val = both(jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts]))
    assert sorted(train + val) == sorted(texts)
    assert least <= len(val) <= most
    assert train == [text for text in texts if text not in set(val)]  # in their order


def test_copies_are_on_one_side(tmp_path):
    train, val = both(jsonl(tmp_path / "a.jsonl", [{"text": f"document {i % 50}"} for i in range(500)]))
    assert not set(train) & set(val)
    assert len(train) == 480 and len(val) == 2  # learnt from as often as they stand there, measured once


def test_the_split_does_not_change_with_the_release(tmp_path):
    _, val = both(jsonl(tmp_path / "a.jsonl", [{"text": f"document {i}"} for i in range(3000)]))
    assert val[:3] == ["document 609", "document 665", "document 773"]
    chats = jsonl(tmp_path / "c.jsonl", [{"messages": chat(f"chat {i}")} for i in range(40)])
    assert [messages[0]["content"] for messages in read_conversations(chats, "val")] == ["chat 10", "chat 22"]


def test_one_document_cannot_be_split(tmp_path):
    (tmp_path / "a.txt").write_text("short")
    assert list(read_documents(str(tmp_path / "a.txt"), "train")) == ["short"]
    with pytest.raises(UserError, match=r"a\.txt holds one document only"):
        list(read_documents(str(tmp_path / "a.txt"), "val"))


def test_several_sources_are_read_in_turn(tmp_path):
    a = jsonl(tmp_path / "a.jsonl", [{"text": f"a{i}"} for i in range(40)])
    b = jsonl(tmp_path / "b.jsonl", [{"text": f"b{i}"} for i in range(4)])
    train, val = both(f"{a}, {b},")
    assert sorted(train + val) == sorted([f"a{i}" for i in range(40)] + [f"b{i}" for i in range(4)])
    assert {text[0] for text in train[:4]} == {"a", "b"}


def test_a_folder_of_all_kinds(tmp_path):
    jsonl(tmp_path / "a.jsonl", [{"text": "from jsonl"}, {"text": " \n"}])
    (tmp_path / "b.txt").write_text("from text\n")
    train, val = both(str(tmp_path))
    assert sorted(train + val) == ["from jsonl", "from text"]


def test_conversations_in_both_shapes(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [chat("one"), {"messages": chat("two"), "topic": "x"}])
    train, val = (list(read_conversations(source, split)) for split in ("train", "val"))
    assert sorted(train + val, key=str) == sorted([chat("one"), chat("two")], key=str)


def test_what_a_user_may_get_wrong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="No data named"):
        read_documents(" , ", "train")
    with pytest.raises(UserError, match=r"no file or folder books\.jsonl"):
        read_documents("books.jsonl", "train")  # told before anything is read
    with pytest.raises(UserError, match=r"no file or folder a/books\.jsonl"):
        read_conversations("a/books.jsonl", "train")
    jsonl(tmp_path / "chats.jsonl", [chat("a"), chat("a")[:1]])
    with pytest.raises(UserError, match=r"^chats\.jsonl line 2: the last message must be the assistant's"):
        list(read_conversations("chats.jsonl", "train"))
    with pytest.raises(UserError, match=r"^chats\.jsonl line 1 holds conversations .* --chat"):
        list(read_documents("chats.jsonl", "train"))
    jsonl(tmp_path / "texts.jsonl", [{"text": "a"}, {"text": None}])
    with pytest.raises(UserError, match=r"^texts\.jsonl line 2: `text` must be a string, got NoneType"):
        list(read_documents("texts.jsonl", "train"))
    with pytest.raises(UserError, match=r"^texts\.jsonl line 1 holds plain text .* pretrain on it"):
        list(read_conversations("texts.jsonl", "train"))
    (tmp_path / "a.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"a\.txt holds nothing but blanks"):
        list(read_documents("a.txt", "train"))
    with pytest.raises(UserError, match=r"a\.txt is plain text, which has no turns"):
        read_conversations("a.txt", "train")


class HubStream:
    """A streamed data set, which can tell where it stands."""

    def __init__(self, rows):
        self.rows, self.at = rows, 0

    def __iter__(self):
        for self.at in range(self.at + 1, len(self.rows) + 1):  # noqa: B020
            yield self.rows[self.at - 1]

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the `datasets` library: `hub(rows)` is what it then streams, or raises."""

    def install(rows):
        def load_dataset(name, split, streaming):
            assert (name, split, streaming) == ("owner/name", "train", True)
            if isinstance(rows, Exception):
                raise rows
            return HubStream(rows)

        monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))

    return install


def test_hub_data_sets(hub):
    hub([{"text": f"document {i}", "id": i} for i in range(30)])
    train, val = both("owner/name")
    assert len(train) == 29 and len(val) == 1
    hub([{"messages": chat(f"chat {i}")} for i in range(30)])
    assert len(list(read_conversations("owner/name", "train"))) == 29
    with pytest.raises(UserError, match=r"owner/name row 1 holds conversations .* --chat"):
        both("owner/name")
    hub(ConnectionError("no route to host"))
    with pytest.raises(
        UserError,
        match=r"no file or folder owner/name, and as .* \(ConnectionError: no route to host\).* hub reachable",
    ):
        both("owner/name")


def test_hub_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'nanochat\[hub\]'"):
        both("owner/name")


@pytest.fixture
def primer(monkeypatch):
    import nanochat.data

    stand_in = types.SimpleNamespace(
        documents=lambda split, seed: (f"primer {split} {seed} {i}" for i in itertools.count()),
        conversations=lambda split, seed: (chat(f"primer {i}") for i in itertools.count()),
    )
    monkeypatch.setitem(sys.modules, "nanochat.data.primer", stand_in)
    monkeypatch.setattr(nanochat.data, "primer", stand_in, raising=False)


def test_the_primer_is_endless_and_mixes(primer, tmp_path):
    a = jsonl(tmp_path / "a.jsonl", [{"text": f"a{i}"} for i in range(10)])
    endless = [open_documents(name, "train").endless for name in ("primer", f"{a}, primer", a, f"{a}=2, primer")]
    assert endless == [True, True, False, False]
    assert next(read_documents("primer", "val", seed=7)) == "primer val 7 0"
    assert next(read_conversations("primer", "train"))[0]["content"] == "primer 0"
    mixed = list(itertools.islice(read_documents(f"{a},primer", "train"), 40))
    assert sum(text.startswith("a") for text in mixed) == 9  # the tenth is held out
    assert sum(text.startswith("a") for text in mixed[:10]) == 5


@real_data
def test_real_text():
    source = str(REAL / "text" / "tinyshakespeare")
    train, val = both(source)
    assert 200 < len(train) < 400 and 10 < len(val) < 20
    text = (REAL / "text" / "tinyshakespeare" / "input.txt").read_text()
    assert abs(sum(map(len, train + val)) - len(text)) < 3 * len(train + val)  # blank lines at the borders
    stories = both(str(REAL / "text" / "simple_stories"))
    assert sum(map(len, stories)) == 1730


@real_data
def test_real_chats():
    identity = str(REAL / "chat" / "identity")
    both_sides = [list(read_conversations(identity, split)) for split in ("train", "val")]
    assert sum(map(len, both_sides)) == 1000 and len(both_sides[1]) == 50
    mixed = f"{REAL / 'chat' / 'oasst1_en'},{REAL / 'chat' / 'chatterbot'},{REAL / 'chat' / 'rasbt_instruct'}"
    val = list(read_conversations(mixed, "val"))
    assert 40 < len(val) < 70
