"""One optimizer step: gradients of a batch, a look at whether they are finite, and the change of the weights.

A GPU is told what to do long before it does it, and nothing here waits for it: what a step has to say is read later,
when the next one is under way, and until then the device itself keeps weights from changing that must not change.

Shapes: B rows of a batch, T tokens of a row, P parameters.
"""

import dataclasses
import logging
import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanochat.common import UserError
from nanochat.data.batches import IGNORED, Batch
from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.training import distributed
from nanochat.training.distributed import local, summed
from nanochat.training.loss import loss_of
from nanochat.training.memory import out_of_memory
from nanochat.training.optimizer import build_optimizers
from nanochat.training.recipe import Recipe
from nanochat.training.schedule import learning_rate_factor, muon_momentum

logger = logging.getLogger(__name__)


class Numbers:
    """What a step has to say, on its way from the device: (3 + P,) fp32, the loss, two wishes, squared norms."""

    def __init__(self, step: int, numbers: Tensor):
        self.step = step
        self._numbers = numbers.to("cpu", non_blocking=numbers.is_cuda)
        self._arrived = torch.cuda.Event() if numbers.is_cuda else None
        if self._arrived:
            self._arrived.record()

    def read(self) -> list[float]:
        """The numbers; waits until they are there."""
        if self._arrived:
            self._arrived.synchronize()
        return self._numbers.tolist()


@dataclasses.dataclass
class Outcome:
    """A step that was done.

    Attributes:
        step: its number, from 0.
        values: to be recorded: `loss`, the mean over the batch's trained tokens in nats; `grad_norm`, of all gradients
            together; `lr_factor`, the learning rates as a part of their peak.
        stop, save: whether one of the processes wished so.
    """

    step: int
    values: dict[str, Any]
    stop: bool
    save: bool


class TrainingStep:
    """Does steps of a recipe with a model; several processes do each step together."""

    def __init__(self, model: NanoChatForCausalLM, recipe: Recipe):
        distributed.check_batch(recipe.batch_size, recipe.seq_len)
        self.model, self.recipe = model, recipe
        self.rows = min(max(1, recipe.micro_batch_tokens // recipe.seq_len), recipe.batch_size)  # of a micro-batch
        self.recomputes = False  # activations on the way back
        self.whole_weights = distributed.whole_weights_fit(model)
        self.loss_of = distributed.shard(model, loss_of, self.whole_weights)
        self.optimizers = build_optimizers(
            model, recipe.matrix_lr, recipe.embedding_lr, recipe.head_lr, recipe.weight_decay,
            getattr(torch, recipe.dtype),
        )  # fmt: skip
        self.diverged = torch.zeros((), device=model.device)  # 1 once a loss or gradient was not finite
        for optimizer in self.optimizers:
            optimizer.found_inf = self.diverged  # type: ignore[attr-defined] # where it is 1, no weight changes

    def begin(self, step: int, batch: Batch, wishes: Callable[[], tuple[bool, bool]]) -> Numbers:
        """Have the device do a step with this process's rows of the batch; the numbers are for `end`.

        `wishes` tells whether this process wishes to stop or to save after the step; all processes hear of it.

        Raises:
            UserError: if memory does not suffice.
        """
        recipe, device = self.recipe, self.model.device
        if self.model.config.attention_dropout:  # its random numbers, too, follow from the step alone
            torch.manual_seed(random.Random(f"{recipe.seed} {step} {distributed.rank()}").getrandbits(63))
        # One normaliser for the whole batch, however it is split: the number of its trained tokens.
        trained = summed(torch.full((), int((batch.labels != IGNORED).sum()), device=device))
        loss = self._backward(batch.to(device), trained)
        gradients = [local(parameter.grad) for parameter in self.model.parameters() if parameter.grad is not None]
        squares = torch.stack(torch._foreach_norm(gradients)).square()
        wished = [torch.full((), float(wish), device=device) for wish in wishes()]
        numbers = summed(torch.cat([torch.stack([loss, *wished]), squares]))
        self.diverged.copy_(torch.maximum(self.diverged, 1 - numbers.isfinite().all().float()))
        self._update(step)
        return Numbers(step, numbers)

    def end(self, numbers: Numbers) -> Outcome:
        """Wait for the numbers of a step.

        Raises:
            UserError: if the loss or a gradient was not finite; the weights are those before that step.
        """
        step = numbers.step
        loss, stop, save, *squares = numbers.read()
        if not all(map(math.isfinite, (loss, *squares))):
            what = f"The loss at step {step} is {loss}"
            if math.isfinite(loss):
                names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
                bad = [name for name, square in zip(names, squares, strict=True) if not math.isfinite(square)]
                more = f" (and of {len(bad) - 1} more)" if len(bad) > 1 else ""
                what = f"The gradient of {bad[0]}{more} at step {step} is not finite"
            raise UserError(
                f"{what}: training has diverged, and the weights were left as they were. Start again with a lower "
                f"rate than --matrix-lr {self.recipe.matrix_lr:g}."
            )
        values = {"loss": loss, "grad_norm": math.sqrt(sum(squares)), "lr_factor": round(self._rate_factor(step), 6)}
        return Outcome(step, values, stop > 0, save > 0)

    def _rate_factor(self, step: int) -> float:
        recipe = self.recipe
        return learning_rate_factor(
            step, recipe.steps, recipe.warmup_steps, recipe.decay_fraction, recipe.final_lr_fraction
        )

    def autocast(self) -> torch.autocast:
        """The precision that the recipe asks for, as a context."""
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.recipe.dtype == "bfloat16")

    def _backward(self, batch: Batch, trained: Tensor) -> Tensor:
        """Add up the gradients of a batch (B, T), of `trained` tokens in all processes; returns its part of the loss.

        Where memory runs out, it is begun again with less at a time.
        """
        while True:
            try:
                return self._accumulate(list(batch.split(self.rows)), trained)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            self._take_less_memory()  # here, where the error no longer holds on to the tensors of its micro-batch

    def _accumulate(self, micro_batches: list[Batch], trained: Tensor) -> Tensor:
        total = torch.zeros((), device=self.model.device)
        for micro in micro_batches:
            if self.whole_weights:
                distributed.exchange_gradients(self.model, now=micro is micro_batches[-1])
            with self.autocast():
                loss = self.loss_of(micro) / trained
            loss.backward()
            total += loss.detach()
        return total

    def _take_less_memory(self) -> None:
        """Halve the micro-batch, for the rest of this session; a single row is computed in two passes instead."""
        rows = f"{self.rows} row{'s' * (self.rows > 1)} of {self.recipe.seq_len} tokens at a time"
        if distributed.world_size() > 1:  # the others are in the middle of an exchange with this process
            half = max(1, self.rows // 2) * self.recipe.seq_len
            raise UserError(f"Memory ran out with {rows}; go on with --resume --micro-batch-tokens {half}.")
        self.model.zero_grad()
        torch.cuda.empty_cache()
        if self.rows > 1:
            self.rows //= 2
            logger.warning(f"Memory ran out with {rows}; going on with {self.rows}.")
        elif not self.recomputes:
            self.model.gradient_checkpointing_enable()
            self.recomputes = True
            logger.warning(f"Memory ran out with {rows}; going on with activation checkpointing, which is slower.")
        else:
            raise UserError(f"Memory does not suffice for {rows}; choose a smaller --depth or --seq-len.")

    def _update(self, step: int) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self._rate_factor(step)
                if "momentum" in group:
                    group["momentum"] = muon_momentum(step)
            optimizer.step()
            optimizer.zero_grad()
