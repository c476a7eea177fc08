"""MB of text per second from a jsonl file to a token store, against Hugging Face's `tokenizers` on the same file.

    python benchmarks/tokenizing.py

Ours is `nanochat.data.tokenization.tokenize`, as `nanochat pretrain` calls it: read, hold out by hash, encode, write
and sync, on all cores. Theirs reads the same lines, encodes them with `encode_batch_fast`, on all cores too, and
writes the ids; nothing is held out. The limit is tiktoken alone: the text in memory, one thread for each core.

(It is not called tokenize.py: that would hide Python's own module from every benchmark.)
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from harness import machine, report

from nanochat.data.sources import open_documents, read_documents
from nanochat.data.tokenization import DocumentEncoder, tokenize
from nanochat.tokenizer import NanoChatTokenizer, train_tokenizer

SOURCE = Path(__file__).parents[2] / "shared/data/text/standardebooks/standardebooks.jsonl"
VOCAB_SIZE, REPEATS, AT_ONCE = 32768, 3, 256


def main() -> None:
    if not SOURCE.exists():
        sys.exit(f"Nothing measured: {SOURCE} is not here.")
    texts = [json.loads(line)["text"] for line in SOURCE.read_bytes().splitlines()]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    tokenizer = train_tokenizer(texts[::4], VOCAB_SIZE)
    cores = machine()["cores"]
    with tempfile.TemporaryDirectory() as folder:
        contenders: dict[str, Callable[[int], object]] = {
            "nanochat": lambda n: ours(Path(folder) / f"ours-{n}", tokenizer, cores),
            "nanochat, one encoding thread": lambda n: ours(Path(folder) / f"one-{n}", tokenizer, 1),
            "tokenizers": lambda n: theirs(Path(folder) / f"theirs-{n}", tokenizer),
            "tiktoken alone, all cores": lambda n: encode(texts, tokenizer, cores),
            "tiktoken alone, one core": lambda n: encode(texts, tokenizer, 1),
            "reading alone": lambda n: sum(1 for _ in read_documents(str(SOURCE), "train")),
        }
        speeds: dict[str, list[float]] = {name: [] for name in contenders}
        for repeat in range(REPEATS):  # in turn, so that what else the machine does meets all of them
            for name, work in contenders.items():
                begun = time.perf_counter()
                work(repeat)
                speeds[name].append(megabytes / (time.perf_counter() - begun))
        whole = np.fromfile(Path(folder) / "theirs-0", np.uint16)
        [first] = tokenizer.encode_documents(texts[:1])
        assert whole[: len(first)].tolist() == first.tolist()  # the same ids
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ratio = medians["nanochat"] / medians["tokenizers"]
    of_limit = medians["nanochat"] / medians["tiktoken alone, all cores"]
    lines = [f"{name:32} {medians[name]:6.1f} MB/s  ({min(v):.1f} to {max(v):.1f})" for name, v in speeds.items()]
    card = [
        f"{SOURCE.name}: {megabytes:.1f} MB, vocabulary {len(tokenizer)}, {cores} cores, median of {REPEATS}",
        *lines,
    ]
    card += [f"{ratio:.1f} times tokenizers; {of_limit:.0%} of tiktoken alone"]
    results = {"megabytes": megabytes, "megabytes_per_second": speeds, "ratio": ratio, "share_of_limit": of_limit}
    report("tokenize", results, "\n".join(card))


def ours(folder: Path, tokenizer: NanoChatTokenizer, workers: int) -> None:
    tokenize(folder, open_documents(str(SOURCE), "train"), DocumentEncoder(tokenizer), workers=workers)


def theirs(path: Path, tokenizer: NanoChatTokenizer) -> None:
    backend, bos = tokenizer.backend_tokenizer, tokenizer.bos_token_id
    with open(SOURCE) as lines, open(path, "wb") as out:
        while batch := [json.loads(line)["text"] for line in islice(lines, AT_ONCE)]:
            rows = backend.encode_batch_fast(batch, add_special_tokens=False)
            out.write(np.concatenate([np.array([bos, *row.ids], np.uint16) for row in rows]).tobytes())


def encode(texts: list[str], tokenizer: NanoChatTokenizer, threads: int) -> None:
    chunks = [texts[at : at + 16] for at in range(0, len(texts), 16)]
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(tokenizer.encode_documents, chunks):
            pass


if __name__ == "__main__":
    main()
