"""Checkpoints of a running stage: a model folder that `from_pretrained` opens, with what training needs beside it."""

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model

from nanochat.common import UserError, atomic_folder

KEEP = 2  # the newest, and one before it in case the newest is damaged


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A folder `checkpoints/step-NNNNNN`: the state after that many optimizer steps.

    Beside the model folder's own files it holds `optimizer.pt` (tensors only) and `loop.json`.
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
        optimizers: list[torch.optim.Optimizer],
        state: dict[str, Any],
    ) -> "Checkpoint":
        """Write a checkpoint, whole or not at all, then drop those older than the newest two.

        Raises:
            UserError: if it can't be written, as on a full disk; those before are still there.
        """
        folder = checkpoints / f"step-{step:06d}"
        for left_over in checkpoints.glob(".step-*"):  # by a kill in the middle of this
            shutil.rmtree(left_over)
        with written(folder), atomic_folder(folder) as temporary:
            save_model(temporary / "model")
            for file in (temporary / "model").iterdir():
                file.rename(temporary / file.name)
            (temporary / "model").rmdir()
            torch.save([optimizer.state_dict() for optimizer in optimizers], temporary / "optimizer.pt")
            (temporary / "loop.json").write_text(json.dumps({"step": step, **state}) + "\n")
        for old in _all(checkpoints)[:-KEEP]:
            shutil.rmtree(old.folder)
        return cls(folder, step)

    def restore(self, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
        """Load weights and optimizer state in place; return the loop's state.

        Raises:
            UserError: if a file is missing or damaged; names it and the remedy.
        """
        try:
            state = json.loads((self.folder / "loop.json").read_text())
            if state["step"] != self.step:
                raise ValueError(f"loop.json is of step {state['step']}")
            optimizer_states = torch.load(self.folder / "optimizer.pt", weights_only=True, map_location="cpu")
            load_model(model, self.folder / "model.safetensors")  # knows that tied weights are stored once
            for optimizer, optimizer_state in zip(optimizers, optimizer_states, strict=True):
                optimizer.load_state_dict(optimizer_state)
        except Exception as error:  # whatever a damaged file makes the readers raise
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
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{path} can't be written ({_reason(error)}); make room, then go on from the last checkpoint with --resume."
        ) from error


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _all(checkpoints: Path) -> list[Checkpoint]:
    named = ((folder, re.fullmatch(r"step-(\d+)", folder.name)) for folder in checkpoints.glob("step-*"))
    return sorted((Checkpoint(folder, int(match[1])) for folder, match in named if match), key=lambda item: item.step)
