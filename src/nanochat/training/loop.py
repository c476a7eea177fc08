"""The one training loop, for pretraining and tuning alike, in one process or several.

Every step's batch is a pure function of (seed, step), so a run that was stopped anywhere goes on from its last
checkpoint exactly as if it had not been.
"""

import contextlib
import dataclasses
import math
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from nanochat.common import Interrupted, UserError
from nanochat.data.batches import Batch
from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.training.checkpoint import KEEP, Checkpoint
from nanochat.training.compilation import accelerate
from nanochat.training.distributed import is_first, rank, release, world_size
from nanochat.training.look_ahead import look_ahead
from nanochat.training.meter import Meter
from nanochat.training.optimizer import state_tensors
from nanochat.training.recipe import Recipe
from nanochat.training.run_log import RunLog, Track
from nanochat.training.step import Numbers, Outcome, TrainingStep

VALIDATIONS = 10  # per run, spread evenly; the last one after the last step
READ_LATER = {"cuda": 1}  # steps told to a device before the numbers of the first one are read: it is never waited for
CHECKPOINT_SECONDS = 30.0  # least time between checkpoints; they never take more than a twentieth of the time


class Batches(Protocol):
    """Where batches come from: the same step gives the same batch, always.

    Only where several processes train are `rank` and `world` given: each gets its own rows of the batch.
    """

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch: ...


class TrainingLoop:
    """Trains `model` by `recipe` on `batches`, and can be stopped and resumed at any step.

    Args:
        model: fp32 weights, on the device to train on; the same in all processes.
        batches: the data.
        recipe: horizon, batch, rates, dtype.
        stage: name in the log, "base" or "chat".
        checkpoints: folder for `step-NNNNNN` checkpoints.
        metrics: path of `metrics.jsonl`.
        save_model: writes a complete model folder to a path; all processes call it, the first one writes.
        validate: returns what to log, such as {"val_bpb": 1.2}; all processes call it.
        meter: tells speed; one that knows the machine's peak tells the share of it too.
        track: gets every record as well, to send it elsewhere.
        keep: how many checkpoints stay, the newest.

    Raises:
        UserError: if the processes can't share a batch evenly.
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
        keep: int = KEEP,
    ):
        self.model, self.batches, self.recipe, self.stage = model, batches, recipe, stage
        self.checkpoints, self.metrics, self.keep = checkpoints, metrics, keep
        self.save_model, self.validate = save_model, validate
        self.meter, self.track = meter or Meter(recipe, model.config), track
        self.train_step = TrainingStep(model, recipe)  # first, for it may move the model to another device
        self.acceleration = accelerate(model, recipe.seq_len)  # a line that says how the layers are made fast
        self.step = 0  # steps done
        self.seconds = 0.0  # spent training, over all sessions of this run

    def resume(self) -> bool:
        """Go back to the newest checkpoint; False if there is none.

        Raises:
            UserError: if it is damaged, or was trained by another recipe or on other data.
        """
        checkpoint = Checkpoint.newest(self.checkpoints)
        if checkpoint is None:
            return False
        state = checkpoint.restore(self.model, state_tensors(self.model, self.train_step.optimizers))
        for name, value in self._origin().items():
            before = state["origin"].get(name, value)
            if before != value:
                raise UserError(
                    f"{checkpoint.folder} was trained with {name} = {before}, but now it is {value}: put back what was "
                    "changed, or choose another --run."
                )
        self.step, self.seconds = state["step"], state["seconds"]
        return True

    def run(self) -> None:
        """Train until the recipe's last step.

        Raises:
            Interrupted: after Ctrl-C or SIGTERM, once the checkpoint is written.
            UserError: if the loss or a gradient is not finite; the weights are those before that step. If memory does
                not suffice for a single row, or the disk for a checkpoint.
        """
        recipe, begun, last_save, save_seconds = self.recipe, time.monotonic(), time.monotonic(), 0.0
        seconds_before, origin = self.seconds, self._origin()
        every = math.ceil(recipe.steps / VALIDATIONS)
        late = READ_LATER.get(self.model.device.type, 0)
        unread: list[Numbers] = []
        self.model.train()
        with (
            self._log() as log,
            _stop_requested() as stop_requested,
            look_ahead(self._own_rows, range(self.step, recipe.steps)) as batches,
        ):

            def wishes() -> tuple[bool, bool]:  # to stop, to save
                since = time.monotonic() - last_save
                return stop_requested(), is_first() and since > max(CHECKPOINT_SECONDS, 20 * save_seconds)

            self.meter.restart()
            for batch in batches:
                unread.append(self.train_step.begin(self.step, batch, wishes))
                self.step += 1
                self.seconds = seconds_before + time.monotonic() - begun
                validate = self.step % every == 0 or self.step == recipe.steps
                done = self._read(unread, leave=0 if validate else late)
                stop, save = any(outcome.stop for outcome in done), any(outcome.save for outcome in done)
                if stop or save:
                    done += self._read(unread, leave=0)  # what is saved is known to be good
                if validate:
                    done[-1].values |= self._validated()
                    self.meter.restart()
                if log:
                    for outcome in done:
                        log.record(outcome.step, **outcome.values)
                        log.show(outcome.step + 1, self.meter.text(outcome.values))
                if stop:
                    self._save(origin)
                    raise Interrupted(self.step)
                if save and self.step < recipe.steps:
                    save_begun = time.monotonic()
                    self._save(origin)
                    last_save = time.monotonic()
                    self.meter.restart()
                    save_seconds = last_save - save_begun

    def _own_rows(self, step: int) -> Batch:
        if world_size() == 1:
            return self.batches.batch(step)
        return self.batches.batch(step, rank(), world_size())

    def _read(self, unread: list[Numbers], leave: int) -> list[Outcome]:
        """Take the steps out of the list, but for the last few, and wait for what they have to say."""
        done = [self.train_step.end(unread.pop(0)) for _ in range(len(unread) - leave)]
        for outcome in done:
            outcome.values |= self.meter.after(outcome.step + 1) | {"seconds": round(self.seconds, 3)}
        return done

    def _validated(self) -> dict[str, Any]:
        self.model.eval()
        with torch.no_grad(), self.train_step.autocast():
            values = self.validate()
        release(self.model)
        self.model.train()
        return values

    def _save(self, origin: dict[str, Any]) -> None:
        state = {"seconds": self.seconds, "origin": origin}
        optimizer_state = state_tensors(self.model, self.train_step.optimizers)
        Checkpoint.save(self.checkpoints, self.step, self.save_model, optimizer_state, state, self.keep)

    def _origin(self) -> dict[str, Any]:
        """What must not change while a run is stopped: its recipe, all but how a batch is cut up, and its data."""
        batch = self.batches.batch(0)
        data = zlib.crc32(batch.labels.numpy().tobytes(), zlib.crc32(batch.input_ids.numpy().tobytes()))
        recipe = dataclasses.asdict(self.recipe)
        del recipe["micro_batch_tokens"]
        return {**recipe, "first batch": data}

    def _log(self) -> contextlib.AbstractContextManager[RunLog | None]:
        if not is_first():
            return contextlib.nullcontext()
        return RunLog(self.metrics, self.stage, self.step, self.recipe.steps, self.track)


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
