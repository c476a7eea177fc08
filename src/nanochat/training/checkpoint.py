"""Checkpoints of a running stage: a model folder that `from_pretrained` opens, with what training needs beside it.

Written by one process or several, and read by any number: `torch.distributed.checkpoint` puts the parts together. Its
files here are safetensors; nothing in a checkpoint is a pickle.
"""

import contextlib
import dataclasses
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from nanochat.common import UserError, atomic_folder
from nanochat.training.distributed import from_first, is_first, wait_for_all

KEEP = 2  # the newest, and one before it in case the newest is damaged


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A folder `checkpoints/step-NNNNNN`: the state after that many optimizer steps.

    Beside the model folder's own files it holds `optimizer/*.safetensors`, one file of each process that trained, and
    `loop.json`: the loop's state, and the size of those files.
    """

    folder: Path
    step: int

    @classmethod
    def newest(cls, checkpoints: Path) -> "Checkpoint | None":
        """The newest checkpoint in the folder, None if there is none."""
        found = _all(checkpoints)
        return found[-1] if found else None

    @classmethod
    def save(
        cls,
        checkpoints: Path,
        step: int,
        save_model: Callable[[Path], None],
        optimizer_state: dict[str, Tensor],
        state: dict[str, Any],
        keep: int = KEEP,
    ) -> "Checkpoint":
        """Write a checkpoint, whole or not at all, then drop those older than the newest `keep`.

        All processes call this, and `save_model` is called on all of them.

        Raises:
            UserError: if it can't be written, as on a full disk; those before are still there.
        """
        folder = checkpoints / f"step-{step:06d}"
        if is_first():
            for left_over in checkpoints.glob(".step-*"):  # by a kill in the middle of this
                shutil.rmtree(left_over)
        with written(folder), atomic_folder(folder) if is_first() else contextlib.nullcontext(folder) as own:
            temporary = from_first(own)
            _write(optimizer_state, temporary / "optimizer")
            save_model(temporary / "model")
            if is_first():
                for file in (temporary / "model").iterdir():
                    file.rename(temporary / file.name)
                (temporary / "model").rmdir()
                record = {"step": step, "optimizer_bytes": _sizes(temporary / "optimizer"), **state}
                (temporary / "loop.json").write_text(json.dumps(record) + "\n")
        wait_for_all()
        if is_first():
            for old in _all(checkpoints)[:-keep]:
                shutil.rmtree(old.folder)
        return cls(folder, step)

    def restore(self, model: torch.nn.Module, optimizer_state: dict[str, Tensor]) -> dict[str, Any]:
        """Load weights and the optimizers' state in place; return the loop's state.

        Raises:
            UserError: if a file is missing or damaged; names it and the remedy.
        """
        try:
            state = json.loads((self.folder / "loop.json").read_text())
            if state["step"] != self.step:
                raise ValueError(f"loop.json is of step {state['step']}")
            for name, size in state["optimizer_bytes"].items():
                actual = (self.folder / "optimizer" / name).stat().st_size
                if actual != size:
                    raise ValueError(f"optimizer/{name} has {actual} bytes instead of {size}")
            _read(optimizer_state, self.folder / "optimizer")
            _read(dict(model.named_parameters()), self.folder)
        except (Exception, CheckpointException) as error:  # whatever a damaged file makes the readers raise
            raise UserError(
                f"The checkpoint {self.folder} is damaged ({_reason(error)}); delete that folder to go on from the one "
                "before."
            ) from error
        return state


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """Turn what the writers of tensors raise on a full disk, each its own kind, into a UserError that names `path`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
        raise UserError(
            f"{path} can't be written ({_reason(error)}); make room, then go on from the last checkpoint with --resume."
        ) from error


def _write(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write the parts of tensors that this process holds, along with those of all others."""
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _quiet():
        dcp.save(dict(tensors), storage_writer=writer, no_dist=not dist.is_initialized())


def _read(tensors: dict[str, Tensor], folder: Path) -> None:
    """Fill tensors in place from the safetensors files of a folder, however many processes wrote them."""
    reader = dcp.HuggingFaceStorageReader(str(folder))
    with _quiet(), torch.no_grad():
        dcp.load(dict(tensors), storage_reader=reader, no_dist=not dist.is_initialized())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns about its own deprecated calls
        yield


def _sizes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in sorted(folder.iterdir())}


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        error, _ = next(iter(error.failures.values()))
    return str(error).strip().partition("\n")[0]


def _all(checkpoints: Path) -> list[Checkpoint]:
    named = ((folder, re.fullmatch(r"step-(\d+)", folder.name)) for folder in checkpoints.glob("step-*"))
    return sorted((Checkpoint(folder, int(match[1])) for folder, match in named if match), key=lambda item: item.step)
