"""A run on disk, and the part of a stage that pretraining and tuning share."""

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from rich.console import Console

from nanochat.checkpoints.folder import save_model
from nanochat.common import Interrupted, UserError, atomic_file
from nanochat.data.batches import IGNORED, Batch, PackedBatches, StreamBatches
from nanochat.data.sources import Corpus
from nanochat.data.store import TokenStore, tokenizer_fingerprint
from nanochat.data.tokenization import ConversationEncoder, DocumentEncoder, tokenize
from nanochat.evaluation.bits_per_byte import bits_per_byte
from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.stages.options import PretrainOptions, SftOptions
from nanochat.stages.samples import Samples, one_line
from nanochat.stages.tokenizing import TokenizingBar
from nanochat.tokenizer import NanoChatTokenizer
from nanochat.training.checkpoint import KEEP, written
from nanochat.training.distributed import (
    announce,
    from_first,
    is_first,
    joined,
    put_back_together,
    wait_for,
    wait_for_all,
    was_restarted,
    world_size,
)
from nanochat.training.loop import TrainingLoop
from nanochat.training.machine import this_machine
from nanochat.training.memory import keep_freed_memory
from nanochat.training.meter import Meter
from nanochat.training.recipe import Recipe
from nanochat.training.recipe_card import machine_line
from nanochat.training.tracking import tracked

VALIDATION_TOKENS = 2**15

Options = TypeVar("Options", bound=PretrainOptions | SftOptions)

# Paths and texts are printed as they are, whatever is in them.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


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

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder; a kill ends that too.

        Those that `torchrun` started together train in it together: the first one locks it, and it alone prints.

        Raises:
            UserError: if another process does so already, or if this is no folder.
        """
        with joined():
            console.quiet = not is_first()
            with self._locked_by_this_process() if is_first() else contextlib.nullcontext():
                yield

    @contextlib.contextmanager
    def _locked_by_this_process(self) -> Iterator[None]:
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file; --run names a folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock", is_singleton=True)  # the speedrun's own stages lock it again
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"Another process is training in {self.folder}; wait for it, or choose another --run."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def options_here(self, stage: str, options: Options) -> Options:
        """The options for this process, where several train a stage together.

        The first one does as it was told. The others wait until it has tokenizer, data and recipe ready, and then open
        what is there, as a resumed run does; so does a process that `torchrun` has started again after a failure.
        """
        if not is_first():
            wait_for(f"{stage} is ready")
        elif not (was_restarted() and self.is_begun(stage)):
            return options
        return dataclasses.replace(options, resume=True)

    def stage(self, stage: str) -> Path:
        """The stage's model folder."""
        return self.folder / stage

    def store(self, stage: str, split: str) -> Path:
        """The token store of a stage's "train" or "val" data."""
        return self.folder / "data" / f"{stage}-{split}"

    def open_or_write_store(
        self,
        stage: str,
        corpus: Corpus[Any],
        encoder: DocumentEncoder | ConversationEncoder,
        max_tokens: int | None,
        reuse: bool,
    ) -> TokenStore:
        """Tokenize `corpus` into the stage's store, or go on with that; or open whatever store there is, if `reuse`.

        Raises:
            UserError: if that one was made with another tokenizer.
        """
        folder = self.store(stage, corpus.split)
        if reuse and folder.exists():
            store = TokenStore.open(folder)
            if store.meta.fingerprint != tokenizer_fingerprint(encoder.tokenizer):
                raise UserError(f"{folder} was made with another tokenizer than the model's; choose another --run.")
            return store
        title = f"{stage} {corpus.split} data"
        try:
            with TokenizingBar(title, console) as bar:
                store = tokenize(
                    folder,
                    corpus,
                    encoder,
                    max_tokens=max_tokens,
                    report=lambda line: console.print(f"{title}: {line}"),
                    progress=bar.show,
                )
        except KeyboardInterrupt:
            console.print(f"\n{title}: Stopped; the same command goes on with what is written, but for some seconds.")
            raise
        console.print(f"{title}: {store.meta.tokens:,} tokens in {len(store):,} documents")
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
        try:
            return Recipe(**origin.pop("recipe")), origin
        except (KeyError, TypeError) as error:
            raise self._damaged(error) from None

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
            recipes = json.loads(path.read_text())
        except ValueError as error:
            raise self._damaged(error) from None
        if not isinstance(recipes, dict) or not all(isinstance(recipe, dict) for recipe in recipes.values()):
            raise self._damaged("not an object of stages")
        return recipes

    def _damaged(self, reason: object) -> UserError:
        return UserError(f"{self.folder / 'recipe.json'} is damaged ({reason}); choose another --run, or delete it.")


def train_stage(
    run: Run,
    stage: str,
    model: NanoChatForCausalLM,
    tokenizer: NanoChatTokenizer,
    recipe: Recipe,
    train: StreamBatches | PackedBatches,
    validation: StreamBatches | PackedBatches,
    resume: bool,
    track: str | None = None,
    keep: int = KEEP,
) -> None:
    """Train, with checkpoints and validation in bits per byte, and write the finished model to the stage's folder.

    `track` is a tracker that gets the metrics too, as named by `new_track`; `keep` is how many checkpoints stay.
    """
    announce(f"{stage} is ready")
    keep_freed_memory()
    machine = this_machine()
    if world_size() == 1:  # else each process takes its part of the weights only
        model.to(machine.device)  # type: ignore[arg-type]
    count = max(1, VALIDATION_TOKENS // recipe.batch_tokens)
    validation_batches = list(validation.validation_batches(count))
    token_bytes = tokenizer.token_bytes()
    samples = Samples(tokenizer, validation.store, recipe.seq_len)

    def validate() -> dict[str, Any]:
        values: dict[str, Any] = {"val_bpb": bits_per_byte(model, validation_batches, token_bytes)}
        loop.meter.peak_flops = world_size() * machine.peak(recipe.dtype, again=True).flops
        if from_first(samples.affordable) or loop.step == recipe.steps:
            values["samples"] = samples.take(model)
            for sample in values["samples"]:
                console.print(f"  step {loop.step}: {one_line(sample)}")
        return values

    def save(folder: Path) -> None:
        whole = put_back_together(model)
        if whole is not None:
            save_model(whole, tokenizer, folder)

    loop = TrainingLoop(
        model,
        train,
        recipe,
        stage=stage,
        checkpoints=run.stage(stage) / "checkpoints",
        metrics=run.metrics,
        save_model=save,
        validate=validate,
        meter=Meter(
            recipe,
            model.config,
            peak_flops=world_size() * machine.peak(recipe.dtype).flops,
            bytes_per_token=_bytes_per_trained_token(validation_batches, token_bytes),
        ),
        keep=keep,
    )
    if resume and loop.resume():
        console.print(f"{stage}: going on after step {loop.step}")
    console.print(recipe.summary(model.config))
    console.print(machine_line(recipe, model.config, machine, world_size()))
    try:
        with tracked(track if is_first() else None, run.folder.resolve().name, stage, recipe) as loop.track:
            loop.run()
    except Interrupted as stop:
        verb = {"base": "pretrain", "chat": "sft"}[stage]
        console.print(
            f"\nStopped after step {stop.step} of {recipe.steps}; everything up to there is saved. Go on with:\n"
            f"nanochat {verb} --run {shlex.quote(str(run.folder))} --resume"
        )
        raise
    _finish(run.stage(stage), save)
    console.print(f"{stage} model: {run.stage(stage)}")


def _bytes_per_trained_token(batches: list[Batch], token_bytes: NDArray[Any]) -> float:
    labels = torch.cat([batch.labels[batch.labels != IGNORED] for batch in batches])
    return float(token_bytes[labels.numpy()].mean())


def _finish(folder: Path, save: Callable[[Path], None]) -> None:
    """Put the finished model into the stage's folder and drop the checkpoints.

    `config.json`, which marks the stage as complete, comes last: a kill before that leaves the checkpoints to resume.
    """
    with written(folder):
        save(folder / "final")
        if is_first():
            for file in sorted((folder / "final").iterdir(), key=lambda file: file.name == "config.json"):
                os.replace(file, folder / file.name)
            (folder / "final").rmdir()
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    wait_for_all()
