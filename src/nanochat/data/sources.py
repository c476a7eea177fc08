"""Sources of text and conversations, named as a user names them after `--data` and `--chat`.

A source is `primer` (endless), a file, a folder of files, or a hub data set id `owner/name`. Several, separated
by commas, are read in turn, one item from each, so that a token limit takes a fair share of every one.

What is held out ("val") is decided by a hash of the item itself, so that copies of it are never on both sides:
one item in 100; of fewer than 2,000 different items one in 20, and at least one. Copies in "val" are left out: a
line that stands a hundred times in a corpus (some do) would be most of what is measured. The Primer has its own splits.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeVar, cast

from nanochat.common import UserError
from nanochat.data import files
from nanochat.data.conversations import Conversation, check_conversation

Split = Literal["train", "val"]
Item = TypeVar("Item")

PRIMER = "primer"
HELD_OUT_ONE_IN, SMALL_HELD_OUT_ONE_IN, SMALL = 100, 20, 2_000


def is_endless(source: str) -> bool:
    """Whether reading `source` never ends, so that the caller has to set a limit."""
    return PRIMER in _names(source)


def read_documents(source: str, split: Split, seed: int = 0) -> Iterator[str]:
    """The documents of `source`, in a fixed order; `seed` is for the Primer. Blank ones are passed over.

    Raises:
        UserError: nothing there, a file unreadable or wrongly shaped (named, with the line), nothing held out.
    """

    def open_primer() -> Iterator[str]:
        from nanochat.data import primer

        return primer.documents(split, seed)

    return _read(source, split, _open_documents, str, open_primer)


def read_conversations(source: str, split: Split, seed: int = 0) -> Iterator[Conversation]:
    """The conversations of `source`, each checked by `check_conversation`; otherwise as `read_documents`."""

    def open_primer() -> Iterator[Conversation]:
        from nanochat.data import primer

        return cast(Iterator[Conversation], primer.conversations(split, seed))

    def text_of(conversation: Conversation) -> str:
        return json.dumps(conversation, ensure_ascii=False, sort_keys=True)

    return _read(source, split, _open_conversations, text_of, open_primer)


def _read(
    source: str,
    split: Split,
    open_one: Callable[[str], Callable[[], Iterator[Item]]],
    text_of: Callable[[Item], str],
    open_primer: Callable[[], Iterator[Item]],
) -> Iterator[Item]:
    names = _names(source)
    # Looked up here, not at the first `next`, so that a mistyped name is told at once.
    openers = [open_one(name) for name in names if name != PRIMER]
    streams = [open_primer()] if PRIMER in names else []
    if openers:
        streams.append(_split(lambda: _in_turn([start() for start in openers]), split, text_of, source))
    return _in_turn(streams)


def _names(source: str) -> list[str]:
    names = [name.strip() for name in source.split(",") if name.strip()]
    if not names:
        raise UserError("No data named: give `primer`, a file, a folder, or a hub data set id (owner/name).")
    return names


def _in_turn(streams: list[Iterator[Item]]) -> Iterator[Item]:
    while streams:
        for stream in list(streams):
            try:
                yield next(stream)
            except StopIteration:
                streams.remove(stream)


def _split(
    start: Callable[[], Iterator[Item]], split: Split, text_of: Callable[[Item], str], source: str
) -> Iterator[Item]:
    """The items on the side `split`; the first of them are read twice, to see whether the corpus is small."""
    hashes: set[int] = set()
    for item in start():
        hashes.add(_hash(text_of(item)))
        if len(hashes) == SMALL:
            break
    if not hashes:
        raise UserError(f"{source} holds nothing but blanks.")
    limit = _held_out_below(hashes)
    if split == "val" and not limit:
        raise UserError(f"{source} holds one document only: add more, so that one can be held out.")
    measured: set[int] = set()
    for item in start():
        fingerprint = _hash(text_of(item))
        if split == "val" and fingerprint < limit and fingerprint not in measured:
            measured.add(fingerprint)
            yield item
        elif split == "train" and fingerprint >= limit:
            yield item


def _held_out_below(hashes: set[int]) -> int:
    """Items with a smaller hash are held out: 0, so none, where there is only one. The rule: see the top."""
    if len(hashes) >= SMALL:
        return 2**64 // HELD_OUT_ONE_IN
    if len(hashes) < 2:
        return 0
    return sorted(hashes)[max(1, len(hashes) // SMALL_HELD_OUT_ONE_IN)]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _open_documents(name: str) -> Callable[[], Iterator[str]]:
    def texts(records: Iterable[tuple[str, object]]) -> Iterator[str]:
        for where, text in records:
            if not isinstance(text, str):
                raise UserError(f"{where}: `text` must be a string, got {type(text).__name__}.")
            yield text

    def read(file: Path) -> Iterator[str]:
        is_text = file.name.lower().endswith(files.TEXT_ENDINGS)
        return files.read_text(file) if is_text else texts(files.read_records(file, "text"))

    def start() -> Iterator[str]:
        documents = texts(_read_hub(name, "text")) if is_hub else itertools.chain.from_iterable(map(read, paths))
        return (document for document in documents if document.strip())

    is_hub = _is_hub_id(name)
    paths = [] if is_hub else files.list_files(Path(name).expanduser(), files.TEXT_ENDINGS + files.RECORD_ENDINGS)
    return start


def _open_conversations(name: str) -> Callable[[], Iterator[Conversation]]:
    def checked(records: Iterable[tuple[str, object]]) -> Iterator[Conversation]:
        for where, messages in records:
            check_conversation(messages, where)
            yield cast(Conversation, messages)

    if _is_hub_id(name):
        return lambda: checked(_read_hub(name, "messages"))
    path = Path(name).expanduser()
    if path.is_file() and path.name.lower().endswith(files.TEXT_ENDINGS):
        raise UserError(f"{name} is plain text, which has no turns to learn from: pretrain on it instead.")
    paths = files.list_files(path, files.RECORD_ENDINGS)
    return lambda: checked(record for file in paths for record in files.read_records(file, "messages"))


def _is_hub_id(name: str) -> bool:
    is_file_name = name.lower().endswith(files.TEXT_ENDINGS + files.RECORD_ENDINGS)
    return bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+", name)) and not is_file_name and not Path(name).exists()


def _read_hub(name: str, key: files.Key) -> Iterator[tuple[str, object]]:
    """(where, value of `key`) for each row of the hub data set's train split, streamed."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            f"There is no file or folder {name}; to read it from the hub: pip install 'nanochat[hub]'."
        ) from None
    row = 0
    try:
        for row, record in enumerate(load_dataset(name, split="train", streaming=True), 1):
            where = f"{name} row {row}"
            yield where, files.value_of(record, key, where)
    except UserError:
        raise
    except Exception as error:  # whatever the network and that library raise: there is no common type
        raise UserError(
            f"There is no file or folder {name}, and as a hub data set it can't be read after row {row}"
            f" ({type(error).__name__}: {error}): is the name right, and the hub reachable?"
        ) from error
