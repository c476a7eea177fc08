"""A complete model folder, out and in: all that `from_pretrained`, `pipeline` and an inference server look for."""

import re
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from nanochat.common import UserError, atomic_folder
from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.tokenizer import NanoChatTokenizer


def generation_config(tokenizer: NanoChatTokenizer, vocab_size: int | None = None) -> GenerationConfig:
    """How `generate` starts, stops and pads by default, by the tokenizer's special tokens.

    It stops at `<|assistant_end|>`, and at `<|bos|>` too: a base model opens the next document with it. A model of
    `vocab_size` rows may have more than the tokenizer has tokens (the original pads to a multiple of 64); those
    extra ids are never generated.
    """
    unused = list(range(len(tokenizer), vocab_size or 0))
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.bos_token_id],
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=unused or None,
    )


def save_model(model: NanoChatForCausalLM, tokenizer: NanoChatTokenizer, folder: str | Path) -> None:
    """Write weights (safetensors, in the model's dtype), config, generation config, tokenizer and chat template.

    The folder is whole or absent; one that stood there before is replaced. The special ids of the model's
    config and its generation config become those of the tokenizer, so that both agree wherever the folder goes.

    Raises:
        UserError: if the tokenizer has more tokens than the model has embeddings; nothing is written.
    """
    rows = model.config.vocab_size
    if len(tokenizer) > rows:
        raise UserError(
            f"The tokenizer has {len(tokenizer)} tokens but the model only {rows} embeddings; use the tokenizer "
            f"the model was trained with, or model.resize_token_embeddings({len(tokenizer)})."
        )
    model.config.bos_token_id = tokenizer.bos_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = generation_config(tokenizer, rows)
    tokenizer.model_max_length = model.config.max_position_embeddings
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def load_model(source: str | Path) -> tuple[PreTrainedModel, NanoChatTokenizer]:
    """Load a model, in the dtype it was saved in, and its tokenizer from a folder or the hub.

    Raises:
        UserError: if there is no such folder or id, or no whole model in it: Transformers would fill missing weights
            with random numbers.
    """
    name, folder = str(source), Path(source).expanduser()
    is_hub_id = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) and not ("/" in name and folder.parent.is_dir())
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{source} has no config.json: it is not the folder of a trained model")
        source = folder
    elif not is_hub_id:
        raise UserError(f"there is no folder {source}: name that of a trained model, or a model on the hub")
    else:
        name += " (no folder here, so taken for a model on the hub)"
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, dtype="auto", output_loading_info=True)
        tokenizer = NanoChatTokenizer.from_pretrained(source)
    except Exception as error:  # whatever damaged files make the readers raise: there is no common type
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"can't load a model from {name}: {reason}") from error
    model, loading = loaded
    if loading["missing_keys"]:
        names = ", ".join(sorted(loading["missing_keys"]))
        raise UserError(f"the model in {source} lacks weights: {names}; train or convert it again")
    return model, tokenizer
