"""A complete model folder: everything that `from_pretrained`, `pipeline` and an inference server look for."""

from pathlib import Path

from transformers import GenerationConfig

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
