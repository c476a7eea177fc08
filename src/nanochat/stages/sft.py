"""Chat tuning (supervised fine-tuning): conversations → packed rows with masks → a chat model."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from nanochat.checkpoints.folder import load_model
from nanochat.common import UserError
from nanochat.data.batches import PackedBatches
from nanochat.data.sources import Split, open_conversations
from nanochat.data.store import TokenStore
from nanochat.data.tokenization import ConversationEncoder
from nanochat.model.configuration import NanoChatConfig
from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.stages.options import SftOptions, check_session
from nanochat.stages.run import VALIDATION_TOKENS, Run, train_stage
from nanochat.tokenizer import NanoChatTokenizer
from nanochat.training.recipe import Recipe
from nanochat.training.tracking import new_track

ENDLESS_TOKENS = 1_000_000  # taken from an endless source unless said otherwise


def sft(options: SftOptions) -> Path:
    """Tune a base model on conversations by the options; returns the chat model's folder.

    Raises:
        UserError: for impossible options or data, before anything is trained.
        Interrupted: after Ctrl-C, once a checkpoint is written.
    """
    check_options(options)
    check_session(options)
    run = Run(options.run)
    with run.locked():
        return _sft(run, run.options_here("chat", options))


def check_options(options: SftOptions) -> None:
    """Refuse what no tuning can do.

    Raises:
        UserError: naming the option.
    """
    for name in ("tokens", "epochs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}.")
    if not 0 <= options.lr_fraction < math.inf:
        raise UserError(f"lr_fraction must be a number of at least 0, got {options.lr_fraction}.")


def _sft(run: Run, options: SftOptions) -> Path:
    if options.resume:
        recipe, origin = run.load_recipe("chat")
        recipe = recipe.with_micro_batch(options.micro_batch_tokens)
        if run.is_complete("chat"):
            raise UserError(f"{run.stage('chat')} is complete; there is nothing to resume.")
        options = dataclasses.replace(options, **origin)
    else:
        run.check_new("chat")
        options = dataclasses.replace(options, track=new_track(options.track))
    base = options.model or run.stage("base")
    if options.model is None and not run.is_complete("base"):
        raise UserError(
            f"There is no model in {base}; run `nanochat pretrain --run {run.folder}` first, or name a --model."
        )
    model, tokenizer = load_model(base)
    if not isinstance(model, NanoChatForCausalLM):
        raise UserError(f"{base} is a {type(model).__name__}; only NanoChat models can be tuned.")
    model.float()

    seq_len = model.config.max_position_embeddings
    train = _store(run, options, "train", tokenizer, seq_len)
    validation = _store(run, options, "val", tokenizer, seq_len)
    if not options.resume:
        recipe = _recipe(options, model.config, train)
        origin = {name: getattr(options, name) for name in ("data", "model", "tokens", "epochs", "track")}
        run.save_recipe("chat", recipe, **origin)
    batches = PackedBatches(train, recipe.batch_size, seq_len, recipe.seed)
    validation_batches = PackedBatches(validation, recipe.batch_size, seq_len, recipe.seed)
    session = (options.resume, options.track, options.keep_checkpoints)
    train_stage(run, "chat", model, tokenizer, recipe, batches, validation_batches, *session)
    return run.stage("chat")


def _recipe(options: SftOptions, config: NanoChatConfig, train: TokenStore) -> Recipe:
    seq_len = config.max_position_embeddings
    chosen: dict[str, Any] = {
        "batch_tokens": options.batch_tokens,
        "micro_batch_tokens": options.micro_batch_tokens,
        "dtype": options.dtype,
        "seed": options.seed,
        # Constant rates help a fresh model; a trained one only has to settle.
        "warmup_steps": 1,
        "decay_fraction": 1.0,
        "seq_len": seq_len,
        "tokens": train.meta.tokens,
    }
    recipe = Recipe.from_depth(config.num_hidden_layers, config.vocab_size, **chosen)
    rows = PackedBatches(train, recipe.batch_size, seq_len, recipe.seed).n_rows
    return dataclasses.replace(
        recipe,
        tokens=options.epochs * rows * seq_len,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        matrix_lr=recipe.matrix_lr * options.lr_fraction,
        embedding_lr=recipe.embedding_lr * options.lr_fraction,
        head_lr=recipe.head_lr * options.lr_fraction,
    )


def _store(run: Run, options: SftOptions, split: Split, tokenizer: NanoChatTokenizer, seq_len: int) -> TokenStore:
    corpus = open_conversations(options.data, split)
    limit = VALIDATION_TOKENS if split == "val" else None
    if limit is None and corpus.endless:
        limit = options.tokens or ENDLESS_TOKENS
    encoder = ConversationEncoder(tokenizer, seq_len + 1)
    return run.open_or_write_store("chat", corpus, encoder, limit, options.resume)
