"""A tiny model, a toy task and a loop over both, for the tests of this folder and for the processes they start.

The toy task: each row counts upwards from a random start; a token of three in four is trained on.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from nanochat.checkpoints.folder import save_model
from nanochat.data.batches import IGNORED, Batch
from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.tokenizer import NanoChatTokenizer
from nanochat.training import loop as loop_module
from nanochat.training.distributed import put_back_together
from nanochat.training.initialization import initialize_for_training
from nanochat.training.loop import TrainingLoop
from nanochat.training.recipe import Recipe
from nanochat.training.step import Numbers

VOCAB = 265  # the 256 bytes and the nine control tokens
RECIPE = Recipe(
    depth=2,
    hidden_size=32,
    num_attention_heads=2,
    vocab_size=VOCAB,
    seq_len=16,
    tokens=20 * 64,
    batch_tokens=64,
    micro_batch_tokens=64,
    matrix_lr=0.02,
    embedding_lr=0.1,
    head_lr=0.01,
    weight_decay=0.0,
    warmup_steps=2,
    decay_fraction=0.5,
    final_lr_fraction=0.05,
    seed=0,
    dtype="float32",
)


def recipe(steps: int = 20, **values: Any) -> Recipe:
    """The tiny recipe over so many steps."""
    return dataclasses.replace(RECIPE, tokens=steps * RECIPE.batch_tokens, **values)


def tiny_model(seed: int = 0, **config: Any) -> NanoChatForCausalLM:
    """The recipe's model, freshly initialised."""
    values = RECIPE.config().to_dict() | config
    model = NanoChatForCausalLM(type(RECIPE.config())(**values))
    initialize_for_training(model, seed)
    return model


class ToyBatches:
    """Four rows of 16 tokens that count upwards."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        generator = torch.Generator().manual_seed(step)
        rows = (torch.randint(0, 200, (4, 1), generator=generator) + torch.arange(17)) % 200
        trained = torch.rand((4, 16), generator=generator) < 0.75
        batch = Batch(rows[:, :-1].contiguous(), torch.where(trained, rows[:, 1:], IGNORED))
        return list(batch.split(4 // world))[rank]


def toy_loop(
    folder: Path,
    model: NanoChatForCausalLM | None = None,
    before: Callable[[int], Any] = lambda step: None,
    **arguments: Any,
) -> TrainingLoop:
    """A loop that writes to `folder` and calls `before(step)` in every step; `arguments` replace `TrainingLoop`'s."""
    model = tiny_model() if model is None else model
    tokenizer = NanoChatTokenizer.from_ranks({bytes([byte]): byte for byte in range(256)})

    def save(path: Path) -> None:
        whole = put_back_together(model)
        if whole is not None:
            save_model(whole, tokenizer, path)

    defaults = {
        "batches": ToyBatches(),
        "recipe": recipe(),
        "stage": "base",
        "checkpoints": folder / "checkpoints",
        "metrics": folder / "metrics.jsonl",
        "save_model": save,
        "validate": lambda: {"val_bpb": 1.0},
    }
    loop = TrainingLoop(model, **(defaults | arguments))
    call_before_steps(loop, before)
    return loop


def call_before_steps(loop: TrainingLoop, before: Callable[[int], Any]) -> None:
    """Have `before(step)` called at the beginning of every step."""
    begin = loop.train_step.begin

    def begin_after(step: int, *arguments: Any) -> Numbers:
        before(step)
        return begin(step, *arguments)

    loop.train_step.begin = begin_after


def save_often() -> SimpleNamespace:
    """A clock for the loop on which so much time goes by that it saves after every few steps."""
    return SimpleNamespace(monotonic=map(float, itertools.count(0, 1000)).__next__)


def losses(folder: Path, stage: str = "base") -> list[float]:
    """The loss of every step in the folder's `metrics.jsonl`, with the steps checked to be 0, 1, 2, ..."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in records if record["stage"] == stage]
    assert [record["step"] for record in records] == list(range(len(records)))
    return [record["loss"] for record in records]


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the weights."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def train_in_process(folder: Path, steps: int) -> None:
    """Train to the end, resuming what is there; the body of a process that a test may kill at any time."""
    torch.set_num_threads(1)
    loop_module.time = save_often()
    loop = toy_loop(folder, recipe=recipe(steps))
    loop.resume()
    loop.run()
    torch.save(loop.model.state_dict(), folder / "final.pt")
