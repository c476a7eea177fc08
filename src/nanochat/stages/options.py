"""What the user can set for each stage; light, so that `nanochat --help` does not wait for PyTorch.

`None` means: as the recipe computes it from the depth.
"""

import dataclasses
from pathlib import Path

from nanochat.common import UserError

DEFAULT_RUN = Path("runs/nanochat")


# What may be another in each session of a run: it changes nothing of what is computed, but for rounding.
OF_A_SESSION = ("run", "micro_batch_tokens", "keep_checkpoints", "resume")


def check_session(options: "PretrainOptions | SftOptions") -> None:
    """Refuse options beside `resume` that would have no effect, and impossible ones of those that have.

    Raises:
        UserError: naming them.
    """
    if options.keep_checkpoints < 1:
        raise UserError(f"keep_checkpoints must be at least 1, got {options.keep_checkpoints}.")
    if options.resume:
        fields = [field for field in dataclasses.fields(options) if field.name not in OF_A_SESSION]
        ignored = [field.name for field in fields if getattr(options, field.name) != field.default]
        if ignored:
            flags = ", ".join("--" + name.replace("_", "-") for name in ignored)
            raise UserError(f"--resume goes on with the options the run was started with; leave out {flags}.")


@dataclasses.dataclass(frozen=True)
class PretrainOptions:
    """Pretrain a model from random weights on plain text.

    Attributes:
        data: `primer`, a file (.txt, .jsonl, .jsonl.gz, .jsonl.zst, .parquet), a folder of them, or a hub data set id;
            several with commas, read in turn, or mixed by weight: a.jsonl=3,b.parquet=1 takes three tokens of a.jsonl
            for one of b.parquet, and what is too short for its weight begins again.
        run: folder of the run; the model goes to RUN/base. A tokenizer in RUN/tokenizer is used, else one is trained.
        depth: layers; decides width, batch, learning rates and horizon.
        vocab_size: of a newly trained tokenizer.
        seq_len: tokens of a row, and the model's context.
        tokens: how many tokens to train on.
        batch_tokens: tokens of one optimizer step.
        micro_batch_tokens: tokens of one forward and backward pass; fewer take less memory.
        matrix_lr: peak learning rate of Muon.
        embedding_lr: peak learning rate of the embedding.
        head_lr: peak learning rate of the output head.
        weight_decay: of the block matrices.
        dtype: bfloat16 or float32.
        seed: of the initial weights and the order of the data.
        track: send the metrics to `trackio` or `wandb` too, if that is installed.
        print_recipe: only show what would be trained, on what machine, in what time and at what cost.
        price_per_hour: of this machine in dollars, for the cost that --print-recipe shows.
        keep_checkpoints: how many checkpoints to keep while training, the newest; each is a model folder.
        resume: go on with RUN where it was stopped, with the options it was started with; only --micro-batch-tokens
            and --keep-checkpoints may be others.
    """

    data: str = "primer"
    run: Path = DEFAULT_RUN
    depth: int = 4
    vocab_size: int | None = None
    seq_len: int | None = None
    tokens: int | None = None
    batch_tokens: int | None = None
    micro_batch_tokens: int | None = None
    matrix_lr: float | None = None
    embedding_lr: float | None = None
    head_lr: float | None = None
    weight_decay: float | None = None
    dtype: str | None = None
    seed: int = 0
    track: str | None = None
    print_recipe: bool = False
    price_per_hour: float | None = None
    keep_checkpoints: int = 2
    resume: bool = False


@dataclasses.dataclass(frozen=True)
class SftOptions:
    """Tune the model in RUN/base on conversations; only the assistant's words are trained on.

    Attributes:
        data: `primer`, a file (.jsonl, .jsonl.gz, .jsonl.zst, .parquet) of `messages`, a folder of them, or a hub data
            set id; several with commas, read in turn, or mixed by weight: a.jsonl=3,b.jsonl=1.
        run: folder of the run; the model goes to RUN/chat.
        model: start from this model folder or hub id instead of RUN/base.
        tokens: how many tokens of conversations to take from an endless source such as the Primer.
        epochs: how often to go through the conversations.
        batch_tokens: tokens of one optimizer step.
        micro_batch_tokens: tokens of one forward and backward pass; fewer take less memory.
        lr_fraction: learning rates as a fraction of the pretraining rates for this model.
        dtype: bfloat16 or float32.
        seed: of the order of the data.
        track: send the metrics to `trackio` or `wandb` too, if that is installed.
        keep_checkpoints: how many checkpoints to keep while training, the newest; each is a model folder.
        resume: go on with RUN where it was stopped, with the options it was started with; only --micro-batch-tokens
            and --keep-checkpoints may be others.
    """

    data: str = "primer"
    run: Path = DEFAULT_RUN
    model: str | None = None
    tokens: int | None = None
    epochs: int = 1
    batch_tokens: int | None = None
    micro_batch_tokens: int | None = None
    lr_fraction: float = 0.5
    dtype: str | None = None
    seed: int = 0
    track: str | None = None
    keep_checkpoints: int = 2
    resume: bool = False


@dataclasses.dataclass(frozen=True)
class SpeedrunOptions:
    """Everything in one go: tokenizer, pretraining, chat tuning, evaluation, a report and a conversation.

    A run that was stopped goes on; one that is complete answers at once.

    Attributes:
        data: plain text to pretrain on, as for `nanochat pretrain`.
        chat: conversations to tune on, as for `nanochat sft`.
        run: folder of the run.
        depth: layers; decides everything that is not set.
        vocab_size: of the tokenizer.
        seq_len: tokens of a row, and the model's context.
        tokens: how many tokens to pretrain on.
        chat_tokens: how many tokens of conversations to take from an endless source such as the Primer.
        chat_epochs: how often to go through the conversations.
        seed: of everything.
        track: send the metrics to `trackio` or `wandb` too, if that is installed.
    """

    data: str = "primer"
    chat: str = "primer"
    run: Path = DEFAULT_RUN
    depth: int = 4
    vocab_size: int | None = None
    seq_len: int | None = None
    tokens: int | None = None
    chat_tokens: int | None = None
    chat_epochs: int = 1
    seed: int = 0
    track: str | None = None
