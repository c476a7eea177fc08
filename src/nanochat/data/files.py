"""Files of text and of records, read as streams that can be left and entered again at any record.

Memory does not grow with a file: lines come one by one, of a parquet file 64 rows at a time. Every complaint names the
file and the line (or row).
"""

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, cast

from nanochat.common import UserError

TEXT_ENDINGS = (".txt", ".md")
RECORD_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst", ".parquet")  # all but the last by line

Key = Literal["text", "messages"]
# Where to read on: a byte offset (in the unpacked text) and the number of lines before it; or a row, and 0.
Place = tuple[int, int]
BEGINNING: Place = (0, 0)


class Record(NamedTuple):
    """One record of a file, or one document of a text file."""

    where: str  # for people: "a.jsonl line 12"
    value: object
    next: Place  # where the record after it begins
    position: int  # bytes of the file that were read so far, as it lies on disk


# A text file is cut into documents of about this many characters, at a blank line.
DOCUMENT_CHARACTERS = 4_000
DOCUMENT_MARK = "<|endoftext|>"


def list_files(path: Path, endings: tuple[str, ...]) -> list[Path]:
    """The data files that `path` stands for: itself, or all in a folder and its sub-folders, sorted by path.

    In a folder, hidden files and unknown endings are passed over; and, where it has other data, `.md` files
    too: they describe it.

    Raises:
        UserError: no such path, an ending that is not among `endings`, a folder without data files.
    """
    accepted = ", ".join(endings)
    if not path.exists():
        raise UserError(f"There is no file or folder {path}; give a file ({accepted}) or a folder of them.")
    if not path.is_dir():
        if not path.name.lower().endswith(endings):
            raise UserError(f"{path} has an unknown ending; give a file ({accepted}) or a folder of them.")
        return [path]
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and file.name.lower().endswith(endings)
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    files = [file for file in files if file.suffix.lower() != ".md"] or files
    if not files:
        raise UserError(f"The folder {path} has no data files ({accepted}).")
    return files


def read(path: Path, key: Key, start: Place = BEGINNING) -> Iterator[Record]:
    """What is in a file, by its ending, after `start`: the documents of a text file, or the values of `key`.

    Raises:
        UserError: it can't be read, or is not what its ending says, or a record has no `key`.
    """
    if path.name.lower().endswith(TEXT_ENDINGS):
        return _read_text(path, start)
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path, key, start[0])
    return _read_lines(path, key, start)


def _read_text(path: Path, start: Place) -> Iterator[Record]:
    """The documents of a text file: cut at `<|endoftext|>` lines, and at a blank line after 4,000 characters.

    Where blank lines are lacking, a line's end after 16,000 characters will do. CRLF becomes LF.
    """
    lines: list[str] = []
    size = 0
    line = _Line("", start, 0)
    before = start

    def document(next: Place) -> Record:
        return Record(f"{path} line {next[1]}", "\n".join(lines).strip("\n"), next, line.position)

    for line in _lines(path, start):
        is_mark = line.text.strip() == DOCUMENT_MARK
        is_border = size >= DOCUMENT_CHARACTERS and not line.text.strip()
        if is_mark or is_border or size >= 4 * DOCUMENT_CHARACTERS:
            yield document(line.next if is_mark else before)
            lines, size = [], 0
        if not is_mark:
            lines.append(line.text)
            size += len(line.text) + 1
        before = line.next
    yield document(before)


def _read_lines(path: Path, key: Key, start: Place) -> Iterator[Record]:
    for line in _lines(path, start):
        if line.text.strip():
            where = f"{path} line {line.next[1]}"
            yield Record(where, value_of(_parse(line.text, where), key, where), line.next, line.position)


def value_of(record: object, key: Key, where: str) -> object:
    """The value of `key` in a record; a bare list is a conversation. `UserError` if there is none."""
    if isinstance(record, list):
        record = {"messages": record}
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: expected an object with the key `{key}`, got a {type(record).__name__}.")
    if key not in record:
        raise _missing(key, list(record), where)
    return record[key]


def _missing(key: Key, found: list[str], where: str) -> UserError:
    if key == "text" and "messages" in found:
        return UserError(
            f"{where} holds conversations (`messages`), not text: tune on it instead (speedrun --chat, sft --data)."
        )
    if key == "messages" and "text" in found:
        return UserError(f"{where} holds plain text (`text`), not conversations: pretrain on it instead.")
    return UserError(f"{where} has no `{key}`; found: {', '.join(found[:10]) or 'nothing'}.")


class _Line(NamedTuple):
    text: str  # without its end
    next: Place
    position: int


def _lines(path: Path, start: Place) -> Iterator[_Line]:
    """The lines of a UTF-8 file, packed or not, from `start` on."""
    offset, number = start
    try:
        with open(path, "rb") as on_disk, _unpacked(path, on_disk) as file:
            _skip(file, offset)
            for raw in file:
                number += 1
                try:
                    text = raw.decode()
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path} line {number} is not UTF-8 (byte 0x{raw[error.start]:02x} at offset"
                        f" {offset + error.start}); save the text as UTF-8."
                    ) from None
                offset += len(raw)
                # Windows editors put a byte-order mark in front.
                text = text.removeprefix("\ufeff") if number == 1 else text
                yield _Line(text.rstrip("\r\n"), (offset, number), offset if file is on_disk else on_disk.tell())
    except (OSError, EOFError, zlib.error) as error:  # the latter two: a gzip file cut short, or damaged
        raise UserError(f"{path} can't be read ({error}): is it whole, and may you read it?") from error
    if not offset:
        raise UserError(f"{path} is empty.")


@contextlib.contextmanager
def _unpacked(path: Path, on_disk: BinaryIO) -> Iterator[BinaryIO]:
    kind = path.suffix.lower()
    if kind == ".gz":
        with gzip.GzipFile(fileobj=on_disk) as file:
            yield cast(BinaryIO, file)
    elif kind == ".zst":
        import pyarrow as pa

        with io.BufferedReader(pa.CompressedInputStream(on_disk, "zstd"), 2**18) as file:
            yield cast(BinaryIO, file)
    else:
        yield on_disk


def _skip(file: BinaryIO, offset: int) -> None:
    if file.seekable():  # of a gzip file Python unpacks what is before
        file.seek(offset)
        return
    while offset > 0 and (read := len(file.read(min(offset, 2**20)))):
        offset -= read


def _parse(line: str, where: str) -> object:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error.msg} at column {error.colno}.") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested too deep
        raise UserError(f"{where} is not readable JSON: {error}.") from None
    if "\\ud" in line or "\\uD" in line:  # only such an escape can smuggle in what no UTF-8 text can hold
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserError(f"{where} has half a surrogate pair (a lone \\ud... escape): no text.") from None
    return record


def _read_parquet(path: Path, key: Key, start: int) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        size = path.stat().st_size
        # With a buffer, a column is read piece by piece, not a whole row group (it may be gigabytes) at once.
        with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
            names = file.schema_arrow.names
            if key not in names:
                raise _missing(key, names, str(path))
            groups = list(range(file.num_row_groups))
            while groups and row + (count := file.metadata.row_group(groups[0]).num_rows) <= start:
                row += count
                groups.pop(0)
            if not groups:
                return
            for batch in file.iter_batches(batch_size=64, row_groups=groups, columns=[key]):
                if row + len(batch) <= start:
                    row += len(batch)
                    continue
                for value in batch.column(0).to_pylist():
                    row += 1
                    if row > start:
                        yield Record(f"{path} row {row}", value, (row, 0), size * row // file.metadata.num_rows)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, in the 64 rows after row {row}: not UTF-8 ({error}).") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} can't be read after row {row} ({error}): is it whole?") from error
