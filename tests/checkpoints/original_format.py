"""A tiny checkpoint in the original's format, made here from its published format and formulas."""

import json
import pickle
from pathlib import Path

import tiktoken
import torch

from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN

SIZES = {"sequence_len": 32, "vocab_size": 265, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32}


def original_encoding() -> tiktoken.Encoding:
    """The smallest tokenizer there can be: 256 bytes and the nine special tokens."""
    return tiktoken.Encoding(
        name="rustbpe",
        pat_str=SPLIT_PATTERN,
        mergeable_ranks={bytes([i]): i for i in range(256)},
        special_tokens={token: 256 + i for i, token in enumerate(SPECIAL_TOKENS)},
    )


def original_tensors(sizes: dict[str, int], rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights by the original's names; the scale makes logits differ from zero."""
    generator = torch.Generator().manual_seed(seed)
    width, key_width = sizes["n_embd"], sizes["n_embd"] // sizes["n_head"] * sizes["n_kv_head"]
    shapes = {"transformer.wte.weight": (rows, width), "lm_head.weight": (rows, width)}
    for i in range(sizes["n_layer"]):
        shapes |= {
            f"transformer.h.{i}.attn.c_q.weight": (width, width),
            f"transformer.h.{i}.attn.c_k.weight": (key_width, width),
            f"transformer.h.{i}.attn.c_v.weight": (key_width, width),
            f"transformer.h.{i}.attn.c_proj.weight": (width, width),
            f"transformer.h.{i}.mlp.c_fc.weight": (4 * width, width),
            f"transformer.h.{i}.mlp.c_proj.weight": (width, 4 * width),
        }
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


class Original:
    """A folder of original checkpoints that a test may spoil."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, step: int = 7, rows: int | None = None, tensors: dict | None = None, **sizes: object) -> Path:
        model_config = SIZES | sizes
        if tensors is None:
            tensors = original_tensors(SIZES, rows or SIZES["vocab_size"], seed=step)
        torch.save(tensors, self.folder / f"model_{step:06d}.pt")
        (self.folder / f"meta_{step:06d}.json").write_text(json.dumps({"step": step, "model_config": model_config}))
        self.write_tokenizer(self.folder)
        return self.folder

    def write_tokenizer(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.pkl").write_bytes(pickle.dumps(original_encoding()))
