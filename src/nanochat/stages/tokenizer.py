"""The tokenizer of a run: trained on the beginning of its text, with a report of how well it compresses."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from nanochat.common import UserError, atomic_folder
from nanochat.data.sources import read_documents
from nanochat.stages.run import Run, console
from nanochat.tokenizer import NanoChatTokenizer, compression_report, train_tokenizer

MOST_DOCUMENTS = 20_000  # of the source; more text changes few merges
MOST_CHARACTERS = 40_000_000

# Kinds of text that a corpus may or may not be like.
KINDS = {
    "English": 'The night was cold, and nobody in the village had seen the ferryman since Tuesday. "He\'ll be back," '
    "said the miller's wife, who didn't believe it herself; and she put another log on the fire.",
    "German": "Die Nacht war kalt, und niemand im Dorf hatte den Fährmann seit Dienstag gesehen. „Er kommt schon "
    "wieder“, sagte die Frau des Müllers, die es selbst nicht glaubte.",
    "Japanese": "夜は寒く、村の誰も火曜日から渡し守を見ていなかった。「きっと戻ってくるよ」と粉屋の妻は言ったが、"
    "自分でも信じてはいなかった。",
    "Python": "def mean(values: list[float]) -> float:\n    if not values:\n        raise ValueError('no values')\n"
    "    return sum(values) / len(values)\n",
    "numbers": "3.14159, 2026-11-22, 1,048,576, 37 x 24 = 888, 99.95 %, +49 30 901820, 0xFF, 6.02e23",
}


def train(folder: Path, data: str, vocab_size: int) -> NanoChatTokenizer:
    """Train a tokenizer of `vocab_size` tokens on `data` and write it to `folder`.

    Raises:
        UserError: if the folder is there already, or for impossible data or sizes.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already; choose another folder or delete it.")
    tokenizer = train_tokenizer(_beginning(data), vocab_size)
    held_out = {f"{data} (held out)": "\n".join(islice(read_documents(data, "val"), 200))}
    with atomic_folder(folder) as temporary:
        tokenizer.save_pretrained(temporary)
    console.print(f"tokenizer of {len(tokenizer)} tokens: {folder}; bytes per token:")
    for kind, bytes_per_token in compression_report(tokenizer, held_out | KINDS).items():
        console.print(f"  {bytes_per_token:5.2f}  {kind}", markup=False)
    return tokenizer


def tokenizer_of(run: Run, data: str, vocab_size: int) -> NanoChatTokenizer:
    """The run's tokenizer; trained on `data` first if it has none yet."""
    return load(run.tokenizer) if run.tokenizer.exists() else train(run.tokenizer, data, vocab_size)


def load(folder: Path) -> NanoChatTokenizer:
    """The tokenizer in a folder.

    Raises:
        UserError: if it can't be read.
    """
    try:
        return NanoChatTokenizer.from_pretrained(folder)
    except Exception as error:  # whatever damaged files make the readers raise: there is no common type
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"The tokenizer in {folder} can't be read ({reason}); choose another --run.") from error


def _beginning(data: str) -> Iterator[str]:
    characters = 0
    for text in islice(read_documents(data, "train"), MOST_DOCUMENTS):
        yield text
        characters += len(text)
        if characters > MOST_CHARACTERS:
            return
