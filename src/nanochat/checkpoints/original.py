"""Checkpoints of the original nanochat (github.com/karpathy/nanochat), in and out, bit for bit.

The original writes `model_000123.pt` (a state dict), `meta_000123.json` (with the `model_config`), and one
`tokenizer.pkl` (a pickled tiktoken encoding) with `token_bytes.pt` for all steps. What converts is its first
architecture, October 2025 to 11 January 2026; later checkpoints hold another model and are refused.

A vocabulary may be padded: more rows in the matrices than tokens in the tokenizer, up to the next multiple of 64. The
rows stay in the model, so that nothing is lost on the way back, and `generation_config` suppresses their ids.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from nanochat.checkpoints.folder import load_model, save_model
from nanochat.common import UserError, atomic_folder
from nanochat.model.configuration import NanoChatConfig
from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.tokenizer import NanoChatTokenizer, load_tokenizer_pickle, save_tokenizer_pickle

SIZES = {  # the original's name of each size: ours
    "sequence_len": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
}
MATRICES = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
# Parts of the names that the original has used since: lambdas and windows from 11 January 2026, value embeddings
# with their gates later that month, smear and backout from March 2026.
NEWER = ("lambda", "window_pattern", "value_embeds", "ve_gate", "smear", "backout", "bigram")
VOCABULARY_MULTIPLE = 64


def convert_original(
    folder: str | Path, out: str | Path, step: int | None = None, tokenizer: str | Path | None = None
) -> Path:
    """Write the checkpoint in `folder` as a complete Transformers model folder; the latest step unless given.

    `tokenizer` is the path of `tokenizer.pkl`; unless given it is looked for in `folder`, `folder/tokenizer` and,
    the original's own layout, in `tokenizer` beside `base_checkpoints`. Weights are float32 if any tensor is (the
    original often keeps its embedding in bfloat16), else bfloat16; no value changes. Pickles are read without
    running anything from them. Logits equal the original's up to its rotary tables, which it rounds to bfloat16.

    Returns:
        `out`.

    Raises:
        UserError: if a file is missing or damaged, if tensors are unknown, missing or of the wrong shape, as in
            every checkpoint of the original's later architectures, or if `out` exists and is not empty. Nothing is
            written then.
    """
    folder, out = Path(folder), Path(out)
    _check_free(out)
    step = _latest_step(folder) if step is None else step
    meta_path, model_path = folder / f"meta_{step:06d}.json", folder / f"model_{step:06d}.pt"
    sizes = _read_sizes(meta_path)
    tensors = _read_tensors(model_path)
    vocab_size, head = sizes["vocab_size"], tensors.get("lm_head.weight")
    padded = -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    rows = padded if head is not None and head.shape[:1] == (padded,) else vocab_size
    settings: dict[str, Any] = {ours: sizes[theirs] for theirs, ours in SIZES.items()}
    settings |= {"vocab_size": rows, "intermediate_size": None}
    settings["rms_norm_eps"] = torch.finfo(torch.float32).eps  # F.rms_norm's own, which the original leaves as it is
    settings |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # save_model fills in the tokenizer's
    try:
        config = NanoChatConfig(**settings)
    except ValueError as error:
        raise UserError(f"{meta_path} describes a model that can't be: {error}") from error
    with torch.device("meta"):
        model = NanoChatForCausalLM(config)
    names = _tensor_names(config)
    _check_tensors(model_path, tensors, {theirs: model.get_parameter(ours).shape for theirs, ours in names.items()})

    tokenizer_path = _find_tokenizer(folder, tokenizer)
    chat_tokenizer = load_tokenizer_pickle(tokenizer_path)
    if not len(chat_tokenizer) <= vocab_size <= rows < len(chat_tokenizer) + VOCABULARY_MULTIPLE:
        raise UserError(
            f"{tokenizer_path} has {len(chat_tokenizer)} tokens, but {meta_path} says vocab_size={vocab_size}: they "
            "don't belong together. Name the right tokenizer.pkl."
        )
    dtype = torch.float32 if any(tensor.dtype == torch.float32 for tensor in tensors.values()) else torch.bfloat16
    model.load_state_dict({ours: tensors[theirs].to(dtype) for theirs, ours in names.items()}, assign=True)
    save_model(model, chat_tokenizer, out)
    return out


def export_original(model_folder: str | Path, out: str | Path, step: int = 0) -> Path:
    """Write a model folder in the original's format: `model_*.pt`, `meta_*.json`, `tokenizer.pkl`, `token_bytes.pt`.

    The embedding is written in bfloat16, as the original keeps it, where that changes no value. The original's RMSNorm
    has its own epsilon, 1.2e-7; a model trained with another runs there with that one.

    Returns:
        `out`.

    Raises:
        UserError: if the folder holds no complete NanoChat model, if the original can't express its configuration
            (the message names what), or if `out` exists and is not empty. Nothing is written then.
    """
    model_folder, out = Path(model_folder), Path(out)
    _check_free(out)
    if not 0 <= step < 10**6:
        raise UserError(f"step must be from 0 to 999999 to fit the file names, got {step}.")
    if not (model_folder / "config.json").is_file():
        raise UserError(f"{model_folder} is not a model folder: it has no config.json.")
    model_type = PreTrainedConfig.get_config_dict(model_folder)[0].get("model_type")
    if model_type != NanoChatConfig.model_type:
        raise UserError(f"{model_folder} holds a {model_type} model; only nanochat models can be exported.")
    config = NanoChatConfig.from_pretrained(model_folder)
    _check_expressible(model_folder, config)
    tokenizer = NanoChatTokenizer.from_pretrained(model_folder)
    if not len(tokenizer) <= config.vocab_size < len(tokenizer) + VOCABULARY_MULTIPLE:
        raise UserError(
            f"{model_folder} has {config.vocab_size} embeddings for {len(tokenizer)} tokens; the original pads at most "
            f"to the next multiple of {VOCABULARY_MULTIPLE}. Use model.resize_token_embeddings({len(tokenizer)}) first."
        )
    model, _ = load_model(model_folder)
    tensors = {theirs: model.get_parameter(ours).detach() for theirs, ours in _tensor_names(config).items()}
    embedding = tensors["transformer.wte.weight"]
    if torch.equal(embedding.bfloat16().to(embedding.dtype), embedding):
        tensors["transformer.wte.weight"] = embedding.bfloat16()
    model_config = {theirs: getattr(config, ours) for theirs, ours in SIZES.items()} | {"vocab_size": len(tokenizer)}
    with atomic_folder(out) as temporary:
        torch.save(tensors, temporary / f"model_{step:06d}.pt")
        meta = json.dumps({"step": step, "model_config": model_config}, indent=2)
        (temporary / f"meta_{step:06d}.json").write_text(meta)
        save_tokenizer_pickle(tokenizer, temporary / "tokenizer.pkl")
        torch.save(torch.from_numpy(tokenizer.token_bytes()), temporary / "token_bytes.pt")
    return out


def _tensor_names(config: NanoChatConfig) -> dict[str, str]:
    """The original's name of each tensor: ours."""
    names = {"transformer.wte.weight": "model.embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
    for layer in range(config.num_hidden_layers):
        for theirs, ours in MATRICES.items():
            names[f"transformer.h.{layer}.{theirs}.weight"] = f"model.layers.{layer}.{ours}.weight"
    return names


def _check_free(out: Path) -> None:
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} exists already; remove it or choose another folder.")


def _latest_step(folder: Path) -> int:
    steps = [re.fullmatch(r"model_(\d{6,})\.pt", path.name) for path in folder.glob("model_*.pt")]
    if not any(steps):
        raise UserError(f"{folder} has no model_NNNNNN.pt, the weights of an original nanochat checkpoint.")
    return max(int(match[1]) for match in steps if match)


def _find_tokenizer(folder: Path, given: str | Path | None) -> Path:
    places = [folder, folder / "tokenizer", folder.resolve().parents[1] / "tokenizer"]
    candidates = [place / "tokenizer.pkl" for place in places] if given is None else [Path(given)]
    for path in candidates:
        if path.is_file():
            return path
    looked = ", ".join(str(path) for path in candidates)
    raise UserError(f"No tokenizer found; looked for {looked}. Give the path of tokenizer.pkl as tokenizer.")


def _read_sizes(path: Path) -> dict[str, int]:
    """The `model_config` of a meta file: the six sizes and nothing else."""
    try:
        sizes = json.loads(path.read_text(encoding="utf-8"))["model_config"]
        if not isinstance(sizes, dict):
            raise TypeError("its model_config is not an object")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; it belongs to the weights of the same number.") from error
    except KeyError as error:
        raise UserError(f"{path} has no model_config.") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not the JSON of an original checkpoint: {error}.") from error
    _refuse(path, "settings", unknown=sizes.keys() - SIZES, missing=SIZES.keys() - sizes.keys())
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{path}: {name} must be a positive whole number, got {value!r}.")
    return sizes


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict of a model file by the original's plain names; no code in it is run."""
    if not path.is_file():
        raise UserError(f"{path} is missing; give a step whose weights are there.")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(
            f"{path} can't be read as a file of plain tensors: it is damaged, cut short, or holds code, which is never "
            f"run here. Copy it anew from a source you trust. ({str(error).splitlines()[0]})"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{path} holds no state dict (names and tensors); is it an optimizer file?")
    return {str(name).removeprefix("_orig_mod."): tensor for name, tensor in tensors.items()}  # of torch.compile


def _check_tensors(path: Path, tensors: dict[str, Tensor], shapes: dict[str, torch.Size]) -> None:
    _refuse(path, "tensors", unknown=tensors.keys() - shapes, missing=shapes.keys() - tensors.keys())
    wrong = [
        f"{name} is {tuple(tensors[name].shape)}, should be {tuple(shape)}"
        for name, shape in shapes.items()
        if tensors[name].shape != shape
    ]
    if wrong:
        raise UserError(f"{path} does not fit its meta file: {_enumerate(wrong)}.")
    other = {tensor.dtype for tensor in tensors.values()} - {torch.float32, torch.bfloat16}
    if other:
        raise UserError(f"{path} must hold float32 or bfloat16 tensors, got {_enumerate(map(str, other))}.")


def _refuse(path: Path, kind: str, unknown: set[str], missing: set[str]) -> None:
    newer = {name for name in unknown if any(part in name for part in NEWER)}
    complaints = [
        f"{title} {kind}: {_enumerate(names)}."
        for title, names in (
            ("It comes from after 11 January 2026, by its newer", newer),
            ("Unknown", unknown - newer),
            ("Missing", missing),
        )
        if names
    ]
    if complaints:
        raise UserError(
            f"{path} is not of the original's first architecture (October 2025 to 11 January 2026), the only one that "
            f"converts. {' '.join(complaints)}"
        )


def _check_expressible(model_folder: Path, config: NanoChatConfig) -> None:
    needed = {
        "intermediate_size": 4 * config.hidden_size,
        "hidden_act": "relu2",
        "final_logit_softcapping": 15,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000},
    }
    wrong = [
        f"{name}={getattr(config, name)} (it has {value})"
        for name, value in needed.items()
        if getattr(config, name) != value
    ]
    if wrong:
        raise UserError(f"The original can't express {model_folder}: {_enumerate(wrong)}.")


def _enumerate(names: Iterable[str], limit: int = 8) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
