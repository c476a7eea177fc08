"""A small made-up corpus and small options, so that a whole pipeline takes seconds."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

from nanochat.stages.options import PretrainOptions, SftOptions

ANIMALS = ("fox", "hen", "owl", "cat", "dog", "pig")
PLACES = ("barn", "field", "wood", "house", "pond")
VERBS = ("sleeps", "eats", "sings", "waits")


def write_corpus(path: Path, documents: int = 300) -> Path:
    """Sentences about animals, one document a line."""
    rng = random.Random(0)
    lines = []
    for number in range(documents):
        sentences = [
            f"The {rng.choice(ANIMALS)} {rng.choice(VERBS)} in the {rng.choice(PLACES)}."
            for _ in range(rng.randint(2, 6))
        ]
        lines.append(json.dumps({"text": f"{number}. " + " ".join(sentences)}))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_chats(path: Path) -> Path:
    """Every animal in every place, as a question with its answer."""
    lines = []
    for animal, place, verb in itertools.product(ANIMALS, PLACES, VERBS):
        question = f"What does the {animal} in the {place} do? It {verb}, no?"
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": f"It {verb}."}]
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines) + "\n")
    return path


def pretrain_options(folder: Path, **values: Any) -> PretrainOptions:
    """Ten steps of ten rows; the corpus is `folder/corpus.jsonl`, the run `folder/run`."""
    corpus = folder / "corpus.jsonl"
    if not corpus.exists():
        write_corpus(corpus)
    sizes = {"depth": 1, "vocab_size": 400, "seq_len": 64, "tokens": 6400, "batch_tokens": 640, "dtype": "float32"}
    return PretrainOptions(**({"data": str(corpus), "run": folder / "run"} | sizes | values))


def sft_options(folder: Path, **values: Any) -> SftOptions:
    """An epoch of the chats in `folder/chats.jsonl`."""
    chats = folder / "chats.jsonl"
    if not chats.exists():
        write_chats(chats)
    return SftOptions(**({"data": str(chats), "run": folder / "run", "batch_tokens": 640, "dtype": "float32"} | values))
