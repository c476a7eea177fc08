"""The one training loop, for pretraining and tuning alike.

Shapes: B rows of a batch, T tokens of a row. Every step's batch is a pure function of (seed, step), so a run that
was stopped anywhere goes on from its last checkpoint exactly as if it had not been.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from nanochat.common import Interrupted, UserError
from nanochat.data.batches import IGNORED, Batch
from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.training.checkpoint import Checkpoint
from nanochat.training.loss import loss_of
from nanochat.training.meter import Meter
from nanochat.training.optimizer import build_optimizers
from nanochat.training.recipe import Recipe
from nanochat.training.run_log import RunLog, Track
from nanochat.training.schedule import learning_rate_factor, muon_momentum

VALIDATIONS = 10  # per run, spread evenly; the last one after the last step
CHECKPOINT_SECONDS = 30.0  # least time between checkpoints; they never take more than a twentieth of the time


class Batches(Protocol):
    """Where batches come from: the same step gives the same batch, always."""

    def batch(self, step: int) -> Batch: ...


class TrainingLoop:
    """Trains `model` by `recipe` on `batches`, and can be stopped and resumed at any step.

    Args:
        model: fp32 weights, on the device to train on.
        batches: the data.
        recipe: horizon, batch, rates, dtype.
        stage: name in the log, "base" or "chat".
        checkpoints: folder for `step-NNNNNN` checkpoints.
        metrics: path of `metrics.jsonl`.
        save_model: writes a complete model folder to a path.
        validate: returns what to log, such as {"val_bpb": 1.2}; must not draw from PyTorch's own random numbers.
        meter: tells speed; one that knows the machine's peak tells the share of it too.
        track: gets every record as well, to send it elsewhere.
    """

    def __init__(
        self,
        model: NanoChatForCausalLM,
        batches: Batches,
        recipe: Recipe,
        stage: str,
        checkpoints: Path,
        metrics: Path,
        save_model: Callable[[Path], None],
        validate: Callable[[], dict[str, Any]],
        meter: Meter | None = None,
        track: Track | None = None,
    ):
        self.model, self.batches, self.recipe, self.stage = model, batches, recipe, stage
        self.checkpoints, self.metrics = checkpoints, metrics
        self.save_model, self.validate = save_model, validate
        self.meter, self.track = meter or Meter(recipe, model.config), track
        self.optimizers = build_optimizers(
            model, recipe.matrix_lr, recipe.embedding_lr, recipe.head_lr, recipe.weight_decay
        )
        if model.device.type == "cpu" and recipe.seq_len <= 1024:
            # PyTorch's fused attention is two to four times slower there than plain products (docs/log.md).
            model.set_attn_implementation("eager")
        self.step = 0  # steps done
        self.seconds = 0.0  # spent training, over all sessions of this run

    def resume(self) -> bool:
        """Go back to the newest checkpoint; False if there is none."""
        checkpoint = Checkpoint.newest(self.checkpoints)
        if checkpoint is None:
            return False
        state = checkpoint.restore(self.model, self.optimizers)
        self.step, self.seconds = state["step"], state["seconds"]
        torch.set_rng_state(torch.tensor(state["rng_state"], dtype=torch.uint8))  # dropout, where a model has any
        return True

    def run(self) -> None:
        """Train until the recipe's last step.

        Raises:
            Interrupted: after Ctrl-C or SIGTERM, once the checkpoint is written.
            UserError: if the loss is not finite; the weights are those before that step.
        """
        recipe, begun, last_save, save_seconds = self.recipe, time.monotonic(), time.monotonic(), 0.0
        seconds_before = self.seconds
        self.model.train()
        every = math.ceil(recipe.steps / VALIDATIONS)
        with (
            RunLog(self.metrics, self.stage, self.step, recipe.steps, self.track) as log,
            _stop_requested() as stop,
        ):
            self.meter.restart()
            while self.step < recipe.steps:
                values = self._train_step(self.step)
                self.step += 1
                self.seconds = seconds_before + time.monotonic() - begun
                values |= self.meter.after(self.step)
                if self.step % every == 0 or self.step == recipe.steps:
                    values |= self._validated()
                    self.meter.restart()
                log.record(self.step - 1, **values, seconds=round(self.seconds, 3))
                log.show(self.step, self.meter.text(values))
                if stop():
                    self._save()
                    raise Interrupted(self.step)
                since = time.monotonic() - last_save
                if self.step < recipe.steps and since > max(CHECKPOINT_SECONDS, 20 * save_seconds):
                    save_begun = time.monotonic()
                    self._save()
                    last_save = time.monotonic()
                    self.meter.restart()
                    save_seconds = last_save - save_begun

    def autocast(self) -> torch.autocast:
        """The precision that the recipe asks for, as a context."""
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.recipe.dtype == "bfloat16")

    def _train_step(self, step: int) -> dict[str, float]:
        """One optimizer step. Returns the mean loss per trained token, in nats, and the rate factor."""
        recipe = self.recipe
        batch = self.batches.batch(step)
        trained_tokens = int((batch.labels != IGNORED).sum())  # one normaliser for the whole batch, however split
        total = 0.0
        for micro in batch.split(max(1, recipe.micro_batch_tokens // recipe.seq_len)):
            with self.autocast():
                loss = loss_of(self.model, micro.to(self.model.device)) / trained_tokens
            loss.backward()
            total += loss.item()
        if not math.isfinite(total):
            raise UserError(
                f"The loss at step {step} is {total}: training has diverged, and the weights were left as they were. "
                f"Start again with a lower rate than --matrix-lr {recipe.matrix_lr:g}."
            )
        factor = learning_rate_factor(
            step, recipe.steps, recipe.warmup_steps, recipe.decay_fraction, recipe.final_lr_fraction
        )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
                if "momentum" in group:
                    group["momentum"] = muon_momentum(step)
            optimizer.step()
            optimizer.zero_grad()
        return {"loss": total, "lr_factor": round(factor, 6)}

    def _validated(self) -> dict[str, Any]:
        self.model.eval()
        with torch.no_grad(), self.autocast():
            values = self.validate()
        self.model.train()
        return values

    def _save(self) -> None:
        state = {"seconds": self.seconds, "rng_state": torch.get_rng_state().tolist()}
        Checkpoint.save(self.checkpoints, self.step, self.save_model, self.optimizers, state)


@contextlib.contextmanager
def _stop_requested() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a flag, so that a step is never cut in half; a second one acts at once."""
    received: list[int] = []
    previous: dict[signal.Signals, Any] = {}

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, previous[signal.Signals(number)])

    with contextlib.suppress(ValueError):  # not in the main thread: signals stay with whoever is there
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, remember)
    try:
        yield lambda: bool(received)
    finally:
        for restored, handler in previous.items():
            signal.signal(restored, handler)
