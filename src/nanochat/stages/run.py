"""A run on disk, and the part of a stage that pretraining and tuning share."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from nanochat.checkpoints.folder import save_model
from nanochat.common import UserError, atomic_file
from nanochat.data.batches import PackedBatches, StreamBatches
from nanochat.data.store import Document, TokenStore, tokenizer_fingerprint
from nanochat.evaluation.bits_per_byte import bits_per_byte
from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.tokenizer import NanoChatTokenizer
from nanochat.training.loop import Interrupted, TrainingLoop
from nanochat.training.memory import keep_freed_memory
from nanochat.training.recipe import Recipe

VALIDATION_TOKENS = 2**15

console = Console(highlight=False, soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class Run:
    """The folder of a run: `recipe.json, tokenizer/, data/, base/, chat/, metrics.jsonl, report.html`.

    While a stage is in training its folder holds `checkpoints/step-NNNNNN`, each a complete model folder; when it is
    done, the folder is the model folder.
    """

    folder: Path

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def stage(self, stage: str) -> Path:
        """The stage's model folder."""
        return self.folder / stage

    def store(self, stage: str, split: str) -> Path:
        """The token store of a stage's "train" or "val" data."""
        return self.folder / "data" / f"{stage}-{split}"

    def open_or_write_store(
        self,
        stage: str,
        split: str,
        documents: Iterable[Document],
        tokenizer: NanoChatTokenizer,
        max_tokens: int | None,
        reuse: bool,
    ) -> TokenStore:
        """Tokenize `documents` into the stage's store; or open the store there is, if `reuse`."""
        folder = self.store(stage, split)
        if reuse and folder.exists():
            return TokenStore.open(folder)
        with console.status(f"{stage} {split} data: tokenizing") as status:
            store = TokenStore.write(
                folder,
                documents,
                len(tokenizer),
                max_tokens=max_tokens,
                token_bytes=tokenizer.token_bytes(),
                fingerprint=tokenizer_fingerprint(tokenizer),
                progress=lambda tokens: status.update(f"{stage} {split} data: {tokens:,} tokens"),
            )
        console.print(f"{stage} {split} data: {store.meta.tokens:,} tokens in {len(store):,} documents")
        return store

    def is_complete(self, stage: str) -> bool:
        """Whether the stage's final model is there."""
        return (self.stage(stage) / "config.json").is_file()

    def is_begun(self, stage: str) -> bool:
        """Whether the stage has a recipe that a resumed run can go on with."""
        return stage in self._recipes()

    def save_recipe(self, stage: str, recipe: Recipe, **origin: Any) -> None:
        """Remember the recipe of a stage, with where its data comes from."""
        recipes = {**self._recipes(), stage: {**origin, "recipe": dataclasses.asdict(recipe)}}
        with atomic_file(self.folder / "recipe.json") as temporary:
            temporary.write_text(json.dumps(recipes, indent=2) + "\n")

    def load_recipe(self, stage: str) -> tuple[Recipe, dict[str, Any]]:
        """The recipe of a stage and the origin of its data.

        Raises:
            UserError: if the run never began that stage.
        """
        recipes = self._recipes()
        if stage not in recipes:
            raise UserError(f"There is nothing to resume: {self.folder} has not begun the stage {stage!r}.")
        origin = dict(recipes[stage])
        return Recipe(**origin.pop("recipe")), origin

    def check_new(self, stage: str) -> None:
        """Refuse to overwrite a stage that was begun before."""
        if self.is_begun(stage) or self.stage(stage).exists():
            raise UserError(
                f"{self.stage(stage)} was begun before; go on with --resume, choose another --run, or delete it."
            )

    def _recipes(self) -> dict[str, Any]:
        path = self.folder / "recipe.json"
        if not path.exists():
            return {}
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); choose another --run, or delete it.") from None


def train_stage(
    run: Run,
    stage: str,
    model: NanoChatForCausalLM,
    tokenizer: NanoChatTokenizer,
    recipe: Recipe,
    train: StreamBatches | PackedBatches,
    validation: StreamBatches | PackedBatches,
    resume: bool,
) -> None:
    """Train, with checkpoints and validation in bits per byte, and write the finished model to the stage's folder."""
    keep_freed_memory()
    count = max(1, VALIDATION_TOKENS // recipe.batch_tokens)
    validation_batches = list(validation.validation_batches(count))
    token_bytes = tokenizer.token_bytes()
    loop = TrainingLoop(
        model,
        train,
        recipe,
        stage=stage,
        checkpoints=run.stage(stage) / "checkpoints",
        metrics=run.metrics,
        save_model=lambda folder: save_model(model, tokenizer, folder),
        validate=lambda: {"val_bpb": bits_per_byte(model, validation_batches, token_bytes)},
    )
    if resume and loop.resume():
        console.print(f"{stage}: going on after step {loop.step}")
    console.print(recipe.summary(model.config))
    try:
        loop.run()
    except Interrupted as stop:
        verb = {"base": "pretrain", "chat": "sft"}[stage]
        console.print(
            f"\nStopped after step {stop.step} of {recipe.steps}; everything up to there is saved. Go on with:\n"
            f"nanochat {verb} --run {run.folder} --resume"
        )
        raise
    save_model(model, tokenizer, run.stage(stage))
    console.print(f"{stage} model: {run.stage(stage)}")
