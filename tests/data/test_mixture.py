"""Several sources as one stream, at the level of texts."""

import collections
import itertools
import json

import pytest

from nanochat.common import UserError
from nanochat.data import sources
from nanochat.data.sources import open_documents, read_documents


def jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def three(tmp_path):
    """Sources of 400, 40 and 90 documents of 10 characters, whose first letter tells the source."""
    return [
        jsonl(tmp_path / f"{name}.jsonl", [f"{name}{number:09}" for number in range(count)])
        for name, count in (("a", 400), ("b", 40), ("c", 90))
    ]


def share(texts):
    counts = collections.Counter(text[0] for text in texts)
    return {name: count / len(texts) for name, count in sorted(counts.items())}


def test_in_turn_until_each_ends(three):
    texts = list(read_documents(",".join(three), "train"))
    assert "".join(text[0] for text in texts[:9]) == "abcabcabc"
    assert len(texts) == len(set(texts)) and texts[-1][0] == "a"


def test_weights_are_kept_from_the_beginning_to_the_end(three):
    a, b, _ = three
    texts = list(read_documents(f"{a}=1, {b}=3", "train"))
    for length in (8, 40, 400, len(texts)):
        assert share(texts[:length]) == pytest.approx({"a": 0.25, "b": 0.75}, abs=1 / length)
    once = list(read_documents(a, "train"))
    assert [text for text in texts if text[0] == "a"][: len(once)] == sorted(text for text in texts if text in once)
    b_texts = [text for text in texts if text[0] == "b"]
    in_b = len(set(b_texts))
    assert b_texts == list(itertools.islice(itertools.cycle(b_texts[:in_b]), len(b_texts)))  # again and again in order


def test_the_end_is_when_each_was_given_whole(three):
    a, b, c = three
    texts = list(read_documents(f"{a}=0.5,{b}=0.1,{c}", "train"))  # c: weight 1, many times
    counts = collections.Counter(texts)
    everything = [text for source in three for text in source_texts(source)]
    held_out = set(everything) - set(texts)
    assert len(held_out) < 40 and not set(read_documents(",".join(three), "val")) - held_out
    assert min(counts[text] for text in texts if text[0] == "a") == 1 and counts["c000000001"] >= 7


def source_texts(source):
    return [json.loads(line)["text"] for line in open(source)]


def test_weights_count_characters_not_documents(tmp_path):
    long = jsonl(tmp_path / "long.jsonl", [f"l{number:099}" for number in range(300)])
    short = jsonl(tmp_path / "short.jsonl", [f"s{number:09}" for number in range(300)])
    texts = list(read_documents(f"{long}=1,{short}=1", "train"))
    assert share(texts)["s"] == pytest.approx(10 / 11, abs=0.01)


def test_what_is_measured_is_never_repeated(three):
    a, b, _ = three
    texts = list(read_documents(f"{a}=1,{b}=50", "val"))
    assert len(texts) == len(set(texts)) and {text[0] for text in texts} == {"a", "b"}


def test_the_primer_by_weight(three):
    a = three[0]
    texts = list(read_documents(f"{a}=1,primer=1", "train"))
    ours = [text for text in texts if text[0] == "a" and text[1:].isdigit()]
    assert len(ours) > 350
    assert sum(map(len, ours)) == pytest.approx(sum(map(len, texts)) / 2, rel=0.05)
    assert open_documents("primer=2", "train").endless and not open_documents(f"{a}=1,primer=1", "train").endless


def test_names_and_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b=2.jsonl", "c.jsonl=3"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    (tmp_path / "folder=7").mkdir()
    (tmp_path / "folder=7" / "a.txt").write_text("x")
    assert open_documents("a.jsonl, b=2.jsonl,folder=7", "train").weights is None
    assert open_documents("a.jsonl = 2,b=2.jsonl=0.5,folder=7,owner/name=1e3", "train").weights == [2, 0.5, 1, 1000]
    with pytest.raises(UserError, match=r"no file or folder c\.jsonl"):
        open_documents("c.jsonl=4", "train")
    for weight in ("0", "-1", "inf", "nan"):
        with pytest.raises(UserError, match=rf"a\.jsonl={weight}: a weight must be a positive number, got {weight}"):
            open_documents(f"a.jsonl={weight}", "train")
    with pytest.raises(UserError, match=r"no file or folder a\.jsonl=much"):
        open_documents("a.jsonl=much", "train")


def test_a_source_that_is_all_held_out_cannot_fill_its_weight(three, tmp_path):
    [text, *_] = read_documents(",".join(three), "val")
    one = jsonl(tmp_path / "one.jsonl", [text])
    with pytest.raises(UserError, match=r"All of .*one\.jsonl is held out, nothing is left to learn from"):
        list(read_documents(",".join(f"{source}=1" for source in (*three, one)), "train"))


def test_a_document_is_on_one_side_whatever_source_it_is_in(tmp_path):
    a = jsonl(tmp_path / "a.jsonl", [f"document {number}" for number in range(900)])
    b = jsonl(tmp_path / "b.jsonl", [f"document {number}" for number in reversed(range(300, 1200))])
    for names in (f"{a},{b}", f"{b}=1,{a}=3"):
        train, val = (set(read_documents(names, split)) for split in ("train", "val"))
        assert not train & val and len(train | val) == 1200 and 50 < len(val) < 70


def test_of_very_long_documents_few_are_read_to_find_the_border(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SMALL_CHARACTERS", 2_000)
    reads = []
    real = sources.Files.items
    monkeypatch.setattr(sources.Files, "items", lambda self, start=None: map(count(reads), real(self, start)))
    a = jsonl(tmp_path / "a.jsonl", [f"{number:0100}" for number in range(300)])
    train, val = (list(read_documents(a, split)) for split in ("train", "val"))
    assert len(train) + len(val) == 300 and not set(train) & set(val) and val
    assert len(reads) == 2 * (300 + 21)


def count(reads):
    def note(item):
        reads.append(item)
        return item

    return note
