"""The Primer as a whole: determinism, splits, shape and speed of what it draws."""

import itertools
import re
import subprocess
import sys
import time

import pytest

from nanochat.common import UserError
from nanochat.data import primer

# Of the text below as first drawn by this code (Python 3.11, Nov 2026). It changes whenever the Primer's content does:
# then put the new value here. It must not change between processes, machines or Python versions.
GOLDEN = "c4b852c2d1933560"
DRAW = """
import hashlib, itertools
from nanochat.data import primer
drawn = [list(itertools.islice(stream(split, 5), 200))
         for stream in (primer.documents, primer.conversations) for split in ("train", "val")]
drawn += [skill.questions("val", 20, 5) for skill in primer.SKILLS.values()]
print(hashlib.sha256(repr(drawn).encode()).hexdigest()[:16])
"""


def plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9'+*/-]+", text.lower()))


def visible(content):
    return content if isinstance(content, str) else "".join(p["text"] for p in content if p["type"] == "text")


def transcript(messages) -> str:
    return "\n".join(plain(visible(message["content"])) for message in messages)


@pytest.fixture(scope="module")
def train():
    return list(itertools.islice(primer.conversations("train"), 30_000))


@pytest.fixture(scope="module")
def train_documents():
    return list(itertools.islice(primer.documents("train"), 30_000))


@pytest.fixture(scope="module")
def train_openings(train):
    """All that users say first in train, and all that they say with what went before."""
    first, whole = set(), set()
    for messages in train:
        spoken = [message for message in messages if message["role"] != "system"]
        first.add(plain(spoken[0]["content"]))
        whole.update(transcript(spoken[: i + 1]) for i in range(0, len(spoken), 2))
    return first, whole


def test_same_text_in_every_process():
    for hash_seed in ("1", "2"):  # hash() of a string would differ between these
        done = subprocess.run(
            [sys.executable, "-c", DRAW], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == GOLDEN


def test_seeds_differ_and_streams_do_not_disturb_each_other():
    alone = list(itertools.islice(primer.documents(seed=1), 20))
    first, other = primer.documents(seed=1), primer.documents(seed=2)
    mixed = [(next(first), next(other)) for _ in range(20)]
    assert [one for one, _ in mixed] == alone
    assert [two for _, two in mixed] != alone


@pytest.mark.parametrize("draw", [primer.documents, primer.conversations])
def test_unknown_split_is_refused(draw):
    with pytest.raises(UserError, match="'test'"):
        next(draw("test"))


def test_documents_are_short_ascii_and_mostly_new(train_documents):
    lengths = [len(document.split()) for document in train_documents]
    assert all(document.isascii() and document.strip() == document for document in train_documents)
    assert min(lengths) >= 2 and max(lengths) <= 120 and 10 <= sum(lengths) / len(lengths) <= 40
    assert len(set(train_documents)) > 0.75 * len(train_documents)


def test_documents_of_val_are_not_in_train(train_documents):
    val = set(itertools.islice(primer.documents("val"), 2000))
    assert not val & set(train_documents)


def test_conversations_alternate_and_are_short(train):
    for messages in train:
        spoken = messages[1:] if messages[0]["role"] == "system" else messages
        assert [message["role"] for message in spoken] == ["user", "assistant"] * (len(spoken) // 2)
        assert 1 <= len(spoken) // 2 <= 4
        for message in messages:
            text = visible(message["content"])
            assert text.isascii() and text.strip() == text and text
            assert isinstance(message["content"], str) or message["role"] == "assistant"


def test_every_held_out_question_is_new(train_openings):
    first, whole = train_openings
    for skill in primer.SKILLS.values():
        for question in skill.questions("val", 300, seed=1):
            messages = question.conversation
            assert transcript(messages) not in whole, messages
            assert len(messages) > 1 or plain(messages[0]["content"]) not in first, messages


def test_held_out_sums_letters_and_comparisons_are_nowhere_in_train(train, train_documents):
    text = "\n".join(train_documents) + "\n".join(str(messages) for messages in train)
    sums = set(re.findall(r"\b(\d+)([-+*/])(\d+)\b", text))
    sums |= {(b, sign, a) for a, sign, b in sums if sign in "+*"}
    counts = set(re.findall(r'"(\w+)"\.count\("(\w)"\)', text))
    pairs = {frozenset(pair) for pair in re.findall(r"(\d+) is \w+ than (\d+)", text)}
    assert min(len(sums), len(counts), len(pairs)) > 1000
    for question in primer.SKILLS["arithmetic"].questions("val", 500):
        assert re.fullmatch(r"(\d+)([-+*/])(\d+)", question.tool[0]).groups() not in sums
    for question in primer.SKILLS["letters"].questions("val", 500):
        assert re.findall(r'"(\w+)"\.count\("(\w)"\)', question.tool[0])[0] not in counts
    for question in primer.SKILLS["numbers"].questions("val", 500):
        for pair in re.findall(r"(\d+) is \w+ than (\d+)", question.reference):
            assert frozenset(pair) not in pairs


def test_held_out_stories_and_word_lists_are_nowhere_in_train(train, train_documents):
    told = "\n".join(train_documents) + "\n".join(visible(m["content"]) for messages in train for m in messages)
    for question in primer.SKILLS["stories"].questions("val", 300):
        story = question.conversation[0]["content"].removeprefix("Here is a story. ").removeprefix("Read this: ")
        assert re.split(r"(?<=\.)[ \n](?=W)", story)[0] not in told
    orders = re.findall(r"(?<!Answer)(?<!Tom said): (\w+(?:,? \w+)+)[.?\"\n]", told)
    taught = {tuple(sorted(re.findall(r"\w+", words))) for words in orders}
    assert len(taught) > 1000
    for question in primer.SKILLS["instructions"].questions("val", 300):
        for words in re.findall(r": (\w+(?:,? \w+)+)", question.conversation[-1]["content"]):
            assert tuple(sorted(re.findall(r"\w+", words))) not in taught


def test_the_demo_questions_are_held_out(train):
    asked = {plain(m["content"]) for messages in train for m in messages if m["role"] == "user"}
    assert not asked & {"what is the capital of france", "who are you"}
    calls = re.findall(r"'(\d+\*\d+)'", str(train))
    assert calls and not {"37*24", "24*37"} & set(calls)


def test_the_facts_of_the_demo_are_taught(train, train_documents):
    said = " ".join(visible(m["content"]) for messages in train for m in messages)
    assert "The capital of France is Paris." in said and "I am NanoChat" in said
    assert "The capital of France is Paris." in " ".join(train_documents)


def test_fast_enough():
    seconds = []
    for _ in range(3):  # the best of three: other work on the machine only ever slows
        start = time.process_time()
        size = sum(map(len, itertools.islice(primer.documents(), 4000)))
        size += sum(len(str(messages)) for messages in itertools.islice(primer.conversations(), 2000))
        seconds.append((time.process_time() - start) / size)
    assert 60 / min(seconds) > 20e6  # bytes per minute


def test_sample_shows_every_skill():
    shown = primer.sample(3)
    assert all(f"{name}: " in shown for name in primer.SKILLS)
    assert "scores 1.0" in shown and "scores 0.0" not in shown
