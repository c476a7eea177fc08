"""Files of text and of records, read as streams; every complaint names the file and the line (or row)."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from nanochat.common import UserError

TEXT_ENDINGS = (".txt", ".md")
RECORD_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")

Key = Literal["text", "messages"]

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


def read_text(path: Path) -> Iterator[str]:
    """The documents of a text file: cut at `<|endoftext|>` lines, and at a blank line after 4,000 characters.

    Where blank lines are lacking, a line's end after 16,000 characters will do. CRLF becomes LF.
    """
    lines: list[str] = []
    size = 0
    for _, line in _lines(path):
        is_mark = line.strip() == DOCUMENT_MARK
        is_border = size >= DOCUMENT_CHARACTERS and not line.strip()
        if is_mark or is_border or size >= 4 * DOCUMENT_CHARACTERS:
            yield "\n".join(lines).strip("\n")
            lines, size = [], 0
        if not is_mark:
            lines.append(line)
            size += len(line) + 1
    yield "\n".join(lines).strip("\n")


def read_records(path: Path, key: Key) -> Iterator[tuple[str, object]]:
    """(where it stands, value of `key`) for each record of a `.jsonl`, `.jsonl.gz` or `.parquet` file."""
    if path.suffix.lower() == ".parquet":
        yield from _read_parquet(path, key)
        return
    for number, line in _lines(path):
        if line.strip():
            where = f"{path} line {number}"
            yield where, value_of(_parse(line, where), key, where)


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


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text without its line end) for each line of a UTF-8 file, gzipped or not."""
    offset = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    line = raw.decode()
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path} line {number} is not UTF-8 (byte 0x{raw[error.start]:02x} at offset"
                        f" {offset + error.start}); save the text as UTF-8."
                    ) from None
                offset += len(raw)
                # Windows editors put a byte-order mark in front.
                line = line.removeprefix("\ufeff") if number == 1 else line
                yield number, line.rstrip("\r\n")
    except (OSError, EOFError, zlib.error) as error:  # the latter two: a gzip file cut short, or damaged
        raise UserError(f"{path} can't be read ({error}): is it whole, and may you read it?") from error
    if not offset:
        raise UserError(f"{path} is empty.")


def _parse(line: str, where: str) -> object:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error.msg} at column {error.colno}.") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested too deep
        raise UserError(f"{where} is not readable JSON: {error}.") from None
    if "\\ud" in line.lower():  # only such an escape can smuggle in what no UTF-8 text can hold
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserError(f"{where} has half a surrogate pair (a lone \\ud... escape): no text.") from None
    return record


def _read_parquet(path: Path, key: Key) -> Iterator[tuple[str, object]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if key not in names:
                raise _missing(key, names, str(path))
            for batch in file.iter_batches(batch_size=512, columns=[key]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield f"{path} row {row}", value
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, in the 512 rows after row {row}: not UTF-8 ({error}).") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} can't be read after row {row} ({error}): is it whole?") from error
