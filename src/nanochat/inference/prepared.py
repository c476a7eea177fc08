"""Weights in a format of the native decoder, made once and kept beside the model they came from."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nanochat.common import atomic_file
from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.model.native import packed_weights
from nanochat.native.packing import side_by_side

VERSION = "2"  # of the formats: what another version wrote is made anew


def prepared_weights(model: NanoChatForCausalLM, format: str, folder: Path | None) -> list[Tensor]:
    """The model's packed weights: from `folder/.prepared/FORMAT.safetensors` if they were made of the files there, else
    made now and, where the folder can be written to, kept. Only integer formats are kept: the others take no time.
    """
    if folder is None or format not in ("int8", "int4"):
        return packed_weights(model, format)
    path = folder / ".prepared" / f"{format}.safetensors"
    origin = _origin(folder)
    kept = _read(path, origin)
    if kept is not None:
        return kept
    weights = packed_weights(model, format)
    try:
        with atomic_file(path) as temporary:
            tensors = {f"{number:04}": weight for number, weight in enumerate(weights)}
            save_file(tensors, temporary, metadata={"origin": origin})
    except OSError:  # a folder for reading only, a full disk: it goes without
        pass
    return weights


def _read(path: Path, origin: str) -> list[Tensor] | None:
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata().get("origin") != origin:
                return None
            return side_by_side([file.get_tensor(name) for name in sorted(file.keys())])
    except (OSError, SafetensorError, AttributeError):  # none, or a damaged one
        return None


def _origin(folder: Path) -> str:
    """What the weights were made of: names, sizes and times of the model's files."""
    files = sorted(folder.glob("model*.safetensors"))
    return " ".join([VERSION, *(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)])
