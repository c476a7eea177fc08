"""One run of `time_to_loss.py`, in a process of its own: ours or the peer's, from building the model to the end."""

import contextlib
import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

VALIDATIONS = 10  # as in our loop
BY_BYTES = 265  # the vocabulary without merges


class Stopwatch:
    """Seconds since it was made, but for those spent in `paused()`."""

    def __init__(self) -> None:
        self.begun, self.outside = time.perf_counter(), 0.0

    def seconds(self) -> float:
        return time.perf_counter() - self.begun - self.outside

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.outside += time.perf_counter() - begun


def train(run: dict[str, Any]) -> dict[str, Any]:
    """The `value` at the end, the `curve` of (step, seconds, value); for a probe each step's end instead, `marks`.

    `judged_alone` lists whether held-out documents are predicted each without a view of those before it in its row, as
    they were written; of two judgements the better one counts.
    """
    import numpy as np
    import torch

    from nanochat.data.batches import StreamBatches
    from nanochat.data.store import TokenStore
    from nanochat.evaluation.bits_per_byte import bits_per_byte

    data = Path(run["data"])
    store = TokenStore.open(data / "train")
    validation = TokenStore.open(data / "val")
    held_out = [
        list(StreamBatches(validation, 64, run["seq_len"], 0, within_documents=alone).validation_batches(10**9))
        for alone in run.get("judged_alone", [False])
    ]
    token_bytes = np.load(data / "val/token_bytes.npy")
    unit = math.log(2) if run["vocab_size"] == BY_BYTES else 1.0  # by bytes: nats, as nanoGPT counts
    curve: list[tuple[int, float, float]] = []
    watch = Stopwatch()

    def validate(model: Any, step: int) -> None:
        if run.get("probe"):
            return
        seconds = watch.seconds()
        with watch.paused(), torch.no_grad(), torch.autocast("cpu", enabled=False):
            model.eval()
            value = min(bits_per_byte(model, batches, token_bytes) for batches in held_out)
            curve.append((step, seconds, unit * value))
            model.train()

    marks = (theirs if "lr" in run else ours)(run, store, watch, validate)
    return {
        "value": curve[-1][2] if curve else math.nan,
        "seconds": curve[-1][1] if curve else marks[-1],
        "seconds_from_launch": time.time() - run["launched"] - watch.outside,
        **({"marks": marks} if run.get("probe") else {"curve": curve}),
    }


def ours(run: dict[str, Any], store: Any, watch: Stopwatch, validate: Callable[[Any, int], None]) -> list[float]:
    """What `nanochat pretrain` does: recipe, batches, loop. Returns the seconds at the end of every step."""
    from nanochat.data.batches import StreamBatches
    from nanochat.model.modeling import NanoChatForCausalLM
    from nanochat.training.initialization import initialize_for_training
    from nanochat.training.loop import TrainingLoop
    from nanochat.training.memory import keep_freed_memory
    from nanochat.training.recipe import Recipe

    keep_freed_memory()
    batch_tokens = run["rows"] * run["seq_len"]
    made = Recipe.from_depth(
        run["layers"], run["vocab_size"], seq_len=run["seq_len"], tokens=run["steps"] * batch_tokens,
        batch_tokens=batch_tokens, seed=run["seed"],
    )  # fmt: skip
    changed = {field.name: run[field.name] for field in dataclasses.fields(Recipe) if field.name in run}
    made = dataclasses.replace(made, hidden_size=run["width"], num_attention_heads=run["heads"], **changed)
    within = run.get("within_documents", False)
    model = NanoChatForCausalLM(made.config())
    initialize_for_training(model, made.seed)
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "metrics.jsonl"
        loop = TrainingLoop(
            model,
            StreamBatches(store, made.batch_size, made.seq_len, made.seed, within_documents=within),
            made,
            stage="base",
            checkpoints=Path(folder) / "checkpoints",
            metrics=metrics,
            save_model=model.save_pretrained,
            validate=lambda: validate(model, loop.step) or {},
        )
        before = watch.seconds()
        loop.run()
        return [before + json.loads(line)["seconds"] for line in metrics.read_text().splitlines()]


def theirs(run: dict[str, Any], store: Any, watch: Stopwatch, validate: Callable[[Any, int], None]) -> list[float]:
    """Transformers' NanoChat and fused AdamW: warm-up, cosine decay to a tenth, gradients clipped at 1.

    Returns the seconds at the end of every step.
    """
    import torch
    import torch.nn.functional as F
    from transformers import NanoChatConfig, NanoChatForCausalLM

    from nanochat.data.batches import StreamBatches

    torch.manual_seed(run["seed"])
    batches = StreamBatches(store, run["rows"], run["seq_len"], run["seed"])
    model = NanoChatForCausalLM(
        NanoChatConfig(
            vocab_size=run["vocab_size"], hidden_size=run["width"], intermediate_size=4 * run["width"],
            num_hidden_layers=run["layers"], num_attention_heads=run["heads"], max_position_embeddings=run["seq_len"],
        )
    )  # fmt: skip

    def loss_of(input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=input_ids, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())

    if run["compiled"]:
        loss_of = torch.compile(loss_of)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=run["lr"], betas=run["betas"], weight_decay=run["weight_decay"], fused=True
    )
    steps, warmup = run["steps"], run.get("warmup", math.ceil(run["steps"] / 20))
    marks = []
    for step in range(steps):
        batch = batches.batch(step)
        done = max(0.0, (step - warmup) / max(1, steps - warmup))
        factor = min(1.0, (step + 1) / (warmup + 1)) * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = factor * run["lr"]
        with torch.autocast("cpu", torch.bfloat16, enabled=run["dtype"] == "bfloat16"):
            loss = loss_of(batch.input_ids, batch.labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % math.ceil(steps / VALIDATIONS) == 0 or step + 1 == steps:
            validate(model, step + 1)
        marks.append(watch.seconds())
    return marks
