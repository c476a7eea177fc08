"""Pretraining: text → tokenizer → rows of tokens → a base model."""

import math
from pathlib import Path

from nanochat.common import UserError
from nanochat.data.batches import StreamBatches
from nanochat.data.sources import Split, open_documents
from nanochat.data.store import TokenStore
from nanochat.data.tokenization import DocumentEncoder
from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.stages.options import PretrainOptions, check_session
from nanochat.stages.run import VALIDATION_TOKENS, Run, console, train_stage
from nanochat.stages.tokenizer import load, tokenizer_of
from nanochat.tokenizer import NanoChatTokenizer
from nanochat.training.distributed import check_batch
from nanochat.training.initialization import initialize_for_training
from nanochat.training.machine import this_machine
from nanochat.training.recipe import Recipe
from nanochat.training.recipe_card import recipe_card
from nanochat.training.tracking import new_track

RECIPE_OPTIONS = (
    *("seq_len", "tokens", "batch_tokens", "micro_batch_tokens"),
    *("matrix_lr", "embedding_lr", "head_lr", "weight_decay", "dtype", "seed"),
)


def pretrain(options: PretrainOptions) -> Path:
    """Train a base model by the options; returns its folder.

    Raises:
        UserError: for impossible options or data, before anything is trained.
        Interrupted: after Ctrl-C, once a checkpoint is written.
    """
    check_session(options)
    if options.price_per_hour is not None:
        raise UserError("--price-per-hour is for the cost that --print-recipe shows; give both, or neither.")
    run = Run(options.run)
    with run.locked():
        return _pretrain(run, run.options_here("base", options))


def print_recipe(options: PretrainOptions) -> None:
    """Show what `pretrain` would do with the options: size, work, memory, time and cost; nothing is read or written.

    A tokenizer that the run already has decides the vocabulary.

    Raises:
        UserError: for impossible options.
    """
    check_session(options)
    price = options.price_per_hour
    if price is not None and not 0 <= price < math.inf:
        raise UserError(f"price_per_hour must be a number of dollars, at least 0, got {price}.")
    run = Run(options.run)
    vocab_size = len(load(run.tokenizer)) if run.tokenizer.exists() else _vocab_size(options)
    recipe = _recipe(options, vocab_size)
    console.print(recipe_card(recipe, recipe.config(), this_machine(), price))


def _pretrain(run: Run, options: PretrainOptions) -> Path:
    if options.resume:
        recipe, origin = run.load_recipe("base")
        recipe = recipe.with_micro_batch(options.micro_batch_tokens)
        data, track = origin["data"], origin.get("track")
        if run.is_complete("base"):
            raise UserError(f"{run.stage('base')} is complete; there is nothing to resume.")
        tokenizer = load(run.tokenizer)
    else:
        run.check_new("base")
        data, track = options.data, new_track(options.track)
        vocab_size = _vocab_size(options)
        recipe = _recipe(options, vocab_size)  # refuses the impossible before anything is made
        check_batch(recipe.batch_size, recipe.seq_len)
        tokenizer = tokenizer_of(run, data, vocab_size)
        recipe = _recipe(options, len(tokenizer))

    train = _store(run, data, "train", tokenizer, recipe.steps * recipe.batch_tokens + 1, options.resume)
    validation = _store(run, data, "val", tokenizer, 2 * VALIDATION_TOKENS, options.resume)
    batches, validation_batches = (
        StreamBatches(store, recipe.batch_size, recipe.seq_len, recipe.seed, within_documents=recipe.within_documents)
        for store in (train, validation)
    )
    if not options.resume:
        run.save_recipe("base", recipe, data=data, vocab_size=vocab_size, track=track)

    model = NanoChatForCausalLM(recipe.config())
    initialize_for_training(model, recipe.seed)
    session = (options.resume, track, options.keep_checkpoints)
    train_stage(run, "base", model, tokenizer, recipe, batches, validation_batches, *session)
    return run.stage("base")


def _recipe(options: PretrainOptions, vocab_size: int) -> Recipe:
    chosen = {name: getattr(options, name) for name in RECIPE_OPTIONS}
    return Recipe.from_depth(options.depth, vocab_size, **chosen)


def _vocab_size(options: PretrainOptions) -> int:
    return default_vocab_size(options.depth) if options.vocab_size is None else options.vocab_size


def default_vocab_size(depth: int) -> int:
    """128 depth², to the nearest power of two, at most 65,536: embedding and head grow in step with the blocks."""
    return 2 ** min(16, round(math.log2(128 * max(1, depth) ** 2)))


def _store(
    run: Run, data: str, split: Split, tokenizer: NanoChatTokenizer, most_tokens: int, reuse: bool
) -> TokenStore:
    corpus = open_documents(data, split)
    # Of a corpus more than is trained on, to draw rows from: files may be sorted. But not hundreds of gigabytes.
    draw_from = 1 if split == "val" or corpus.weights or None in corpus.sizes else 4
    return run.open_or_write_store("base", corpus, DocumentEncoder(tokenizer), draw_from * most_tokens, reuse)
