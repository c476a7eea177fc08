"""Sources of text and conversations, named as a user names them after `--data` and `--chat`.

A source is `primer` (endless), a file, a folder of files, or a hub data set id `owner/name`. Several, separated by
commas, are read in turn, one item from each, so that a token limit takes a fair share of every one. `NAME=WEIGHT`
mixes them by weight instead: see `mixture.py`. (A file whose name ends like that is meant as a file.)

What is held out ("val") is decided by a hash of the item itself, so that copies of it are never on both sides, be they
in one source or in two: one item in 100; of fewer than 2,000 different items one in 20, and at least one. Copies in
"val" are left out: a line that stands a hundred times in a corpus (some do) would be most of what is measured. The
Primer has its own splits.
"""

import copy
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, cast

from nanochat.common import UserError
from nanochat.data import files
from nanochat.data.conversations import Conversation, check_conversation
from nanochat.data.mixture import Lane, Mixture
from nanochat.data.source import Files, Generated, HubRows, Item, Parse, Source

Split = Literal["train", "val"]

PRIMER = "primer"
HELD_OUT_ONE_IN, SMALL_HELD_OUT_ONE_IN, SMALL = 100, 20, 2_000
SMALL_CHARACTERS = 100_000_000  # so much text is not read further only to count its items


@dataclasses.dataclass
class Corpus(Generic[Item]):
    """What a user named, on one side of the split.

    Attributes:
        sources: in the order they were named.
        weights: one for each, or None: in turn.
        split: "train" or "val".
        identity: plain data that differs where the items or their order may differ.
    """

    sources: list[Source[Item]]
    weights: list[float] | None
    split: Split
    identity: Any

    @property
    def endless(self) -> bool:
        """Whether it never ends, so that the caller has to set a limit: with weights, if all of it is the Primer."""
        all_or_any = all if self.weights else any
        return all_or_any(source.endless for source in self.sources)

    @property
    def sizes(self) -> list[int | None]:
        """Bytes on disk of each source, where that is known."""
        return [source.size for source in self.sources]

    @property
    def repeats(self) -> bool:
        """Whether a source may be given more than once, to fill its weight: what is measured never is."""
        return self.weights is not None and self.split == "train"


def open_documents(source: str, split: Split, seed: int = 0) -> Corpus[str]:
    """The documents that `source` names; `seed` is for the Primer. Blank ones are passed over.

    Raises:
        UserError: at once for a name that stands for nothing; when read, for a file unreadable or wrongly shaped
            (named, with the line), or if nothing is held out.
    """

    def start() -> Iterator[str]:
        from nanochat.data import primer

        return primer.documents(split, seed)

    def parse(value: object, where: str) -> str | None:
        if not isinstance(value, str):
            raise UserError(f"{where}: `text` must be a string, got {type(value).__name__}.")
        return None if not value or value.isspace() else value

    open_one = partial(_open_one, key="text", parse=parse, endings=files.TEXT_ENDINGS + files.RECORD_ENDINGS)
    return _open(source, split, open_one, partial(Generated, PRIMER, seed, start), str)


def open_conversations(source: str, split: Split, seed: int = 0) -> Corpus[Conversation]:
    """The conversations that `source` names, each checked by `check_conversation`; otherwise as `open_documents`."""

    def start() -> Iterator[Conversation]:
        from nanochat.data import primer

        return cast(Iterator[Conversation], primer.conversations(split, seed))

    def parse(messages: object, where: str) -> Conversation:
        check_conversation(messages, where)
        return cast(Conversation, messages)

    def open_one(name: str) -> Source[Conversation]:
        path = Path(name).expanduser()
        if path.is_file() and path.name.lower().endswith(files.TEXT_ENDINGS):
            raise UserError(f"{name} is plain text, which has no turns to learn from: pretrain on it instead.")
        return _open_one(name, key="messages", parse=parse, endings=files.RECORD_ENDINGS)

    def text_of(conversation: Conversation) -> str:
        return json.dumps(conversation, ensure_ascii=False, sort_keys=True)

    return _open(source, split, open_one, partial(Generated, PRIMER, seed, start), text_of)


def read_documents(source: str, split: Split, seed: int = 0) -> Iterator[str]:
    """The documents of `source`, in a fixed order; by weight they are mixed by characters. See `open_documents`."""
    return _read(open_documents(source, split, seed), len)


def read_conversations(source: str, split: Split, seed: int = 0) -> Iterator[Conversation]:
    """The conversations of `source`, in a fixed order. See `open_conversations`."""
    return _read(open_conversations(source, split, seed), lambda conversation: len(str(conversation)))


def _read(corpus: Corpus[Item], size_of: Callable[[Item], int]) -> Iterator[Item]:
    lanes = [Lane(source, list, size_of, corpus.repeats, chunk_size=20_000) for source in corpus.sources]
    return iter(Mixture(lanes, corpus.weights, size_of))


def _open(
    names: str,
    split: Split,
    open_one: Callable[[str], Source[Item]],
    open_primer: Callable[[], Source[Item]],
    text_of: Callable[[Item], str],
) -> Corpus[Item]:
    named = _named(names)
    # Looked up here, not at the first item, so that a mistyped name is told at once.
    sources = [open_primer() if name == PRIMER else open_one(name) for name, _ in named]
    to_split = [source for source in sources if not source.endless]
    keep = _Side(to_split, split, text_of, names).takes
    for source in to_split:
        source.keep = keep
    weights = [weight or 1.0 for _, weight in named] if any(weight for _, weight in named) else None
    return Corpus(sources, weights, split, [[source.identity() for source in sources], weights, split])


def _open_one(name: str, key: files.Key, parse: Parse[Item], endings: tuple[str, ...]) -> Source[Item]:
    is_file_name = name.lower().endswith(files.TEXT_ENDINGS + files.RECORD_ENDINGS)
    path = Path(name).expanduser()
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) and not is_file_name and not path.exists():
        return HubRows(name, key, parse)
    return Files(name, files.list_files(path, endings), key, parse)


def _named(names: str) -> list[tuple[str, float | None]]:
    """(name, weight if one is given) for each source."""
    named = [_with_weight(name.strip()) for name in names.split(",") if name.strip()]
    if not named:
        raise UserError("No data named: give `primer`, a file, a folder, or a hub data set id (owner/name).")
    return named


def _with_weight(name: str) -> tuple[str, float | None]:
    base, equals, weight = name.rpartition("=")
    if not equals or Path(name).expanduser().exists():
        return name, None
    try:
        value = float(weight)
    except ValueError:
        return name, None
    if not 0 < value < math.inf:
        raise UserError(f"{name}: a weight must be a positive number, got {weight.strip()}.")
    return base.strip(), value


class _Side(Generic[Item]):
    """Which items of the sources are on the side `split`: those held out have a hash below a limit, the same for all.

    The first items are read once more for the limit, to see whether the corpus is small. The rule: see the top.
    """

    def __init__(self, sources: list[Source[Item]], split: Split, text_of: Callable[[Item], str], names: str) -> None:
        self._sources, self._split, self._text_of, self._names = sources, split, text_of, names
        self._limit: int | None = None
        self._measured: set[int] = set()  # hashes of what "val" gave; it is small

    def takes(self, item: Item) -> bool:
        if self._limit is None:
            self._limit = self._find_limit()
        fingerprint = _hash(self._text_of(item))
        if self._split == "train":
            return fingerprint >= self._limit
        if fingerprint >= self._limit or fingerprint in self._measured:
            return False
        self._measured.add(fingerprint)
        return True

    def _find_limit(self) -> int:
        hashes: set[int] = set()
        characters = 0
        for item in _in_turn([copy.copy(source).items() for source in self._sources]):
            text = self._text_of(item)
            hashes.add(_hash(text))
            characters += len(text)
            if len(hashes) == SMALL:
                return 2**64 // HELD_OUT_ONE_IN
            if characters > SMALL_CHARACTERS:
                break
        if len(hashes) > 1:
            return sorted(hashes)[max(1, len(hashes) // SMALL_HELD_OUT_ONE_IN)]
        if self._split == "val":
            raise UserError(f"{self._names} holds one document only: add more, so that one can be held out.")
        return 0


def _in_turn(streams: list[Iterator[Item]]) -> Iterator[Item]:
    while streams:
        for stream in list(streams):
            try:
                yield next(stream)
            except StopIteration:
                streams.remove(stream)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
