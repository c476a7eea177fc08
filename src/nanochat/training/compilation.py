"""Making a model's layers fast on the machine at hand."""

import os
from pathlib import Path

from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.training.native_layer import use_native_layers


def accelerate(model: NanoChatForCausalLM, seq_len: int) -> str:
    """Prepare the layers of a model for training, in place; returns a line that says how.

    On a CPU: the layer written by hand over kernels in C, where there is a C compiler. It starts at once, and is
    faster and smaller than the same layer under `torch.compile` (docs/log.md). On a GPU: `torch.compile`, once for all
    layers, whose results stay in `~/.cache/nanochat/inductor` for later runs.
    """
    if model.device.type == "cpu":
        if use_native_layers(model):
            return "layers by the kernels in C"
        if seq_len <= 1024:
            # PyTorch's fused attention is two to four times slower there than plain products (docs/log.md).
            model.set_attn_implementation("eager")
        return "layers in plain PyTorch; with a C compiler (gcc or clang) they would be about twice as fast"
    if model.device.type != "cuda":
        return "layers in plain PyTorch"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanochat" / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    for layer in model.model.layers:
        layer.compile(dynamic=False)
    return f"layers by torch.compile: the first step takes a minute or so, less when {cache} knows it"
