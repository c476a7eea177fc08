"""What two processes do together in `test_distributed.py`; each function is the body of both of them."""

import multiprocessing
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from training_setup import recipe, tiny_model, toy_loop

from nanochat.common import Interrupted, UserError
from nanochat.training import distributed
from nanochat.training.loop import TrainingLoop
from nanochat.training.optimizer import state_tensors

STEPS = 12
LIMIT_SECONDS = 60  # a hang fails


def together(body: Callable[[Path], Any], folder: Path, world: int = 2) -> list[int | None]:
    """Run `body(folder)` in so many processes that know of each other, as torchrun would; their exit codes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["two_processes"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=_join, args=(body, folder, rank, world, port)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT_SECONDS)
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, f"{len(hanging)} of {world} processes hang"
    return [process.exitcode for process in processes]


def _join(body: Callable[[Path], Any], folder: Path, rank: int, world: int, port: int) -> None:
    torch.set_num_threads(1)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(number) for name, number in numbers.items()}, MASTER_ADDR="127.0.0.1")
    with distributed.joined():
        body(folder)


def whole(tensor: Tensor) -> Tensor:
    """A copy of a tensor, put together from all processes."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def kept(folder: Path, name: str, value: Any) -> None:
    """Save a value for the test to look at."""
    if distributed.is_first():
        torch.save(value, folder / f"{name}.pt")


def gradients(loop: TrainingLoop) -> dict[str, Tensor]:
    """The gradients of the first batch; the head is not at zero, where it would hide those of everything else."""
    for optimizer in loop.train_step.optimizers:
        optimizer.step = optimizer.zero_grad = lambda: None
    rows = loop._own_rows(0)
    loop.train_step.begin(0, rows, lambda: (False, False))
    return {name: whole(parameter.grad) for name, parameter in loop.model.named_parameters()}


def model_with_a_head() -> Any:
    """The tiny model, its head not at zero."""
    model = tiny_model()
    torch.nn.init.normal_(model.lm_head.weight, generator=torch.Generator().manual_seed(1))
    return model


def all_gradients(folder: Path) -> None:
    """Gradients with one and two rows at a time, with whole weights and with those of a block at a time."""
    for whole_weights in (True, False):
        for rows in (1, 2):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(distributed, "whole_weights_fit", lambda model, fit=whole_weights: fit)
                loop = toy_loop(folder, model_with_a_head(), recipe=recipe(micro_batch_tokens=16 * rows))
                kept(folder, f"gradients-{whole_weights}-{rows}", gradients(loop))


def train(folder: Path) -> None:
    """Train without a stop; and again, stopped by a signal to the second process alone and resumed."""
    toy_loop(folder / "whole", recipe=recipe(STEPS)).run()

    def interrupt(step: int) -> None:
        if step == 6 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGINT)

    cut = toy_loop(folder / "cut", recipe=recipe(STEPS), before=interrupt)
    with pytest.raises(Interrupted):
        cut.run()
    kept(folder, "optimizer", {n: whole(t) for n, t in state_tensors(cut.model, cut.train_step.optimizers).items()})
    kept(folder, "model", {name: whole(parameter) for name, parameter in cut.model.named_parameters()})
    if distributed.is_first():
        shutil.copytree(folder / "cut", folder / "stopped")
    resume(folder / "cut")


def resume(folder: Path) -> None:
    """Go on with what is in the folder, whoever left it there."""
    loop = toy_loop(folder, tiny_model(seed=5), recipe=recipe(STEPS))
    assert loop.resume()
    loop.run()


def poisoned(folder: Path) -> None:
    """The loss is not finite on the second process alone: both stop, without a change."""
    loop = toy_loop(folder, recipe=recipe(STEPS))
    if distributed.rank() == 1:
        norm = loop.model.model.norm.forward
        loop.model.model.norm.forward = lambda x: norm(x) * float("nan")
    with pytest.raises(UserError, match="loss at step 0 is nan"):
        loop.run()


def refuse_on_the_first(folder: Path) -> None:
    """The first process makes a mistake of the user's known; the second one waits for it."""
    if distributed.is_first():
        raise UserError("no")
    distributed.wait_for("what never comes")
