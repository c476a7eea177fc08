"""The speedrun: tokenizer → pretraining → chat tuning → evaluation → a report and a conversation, in one go."""

import dataclasses
import itertools
import shlex
import sys
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch

from nanochat.common import UserError
from nanochat.data.conversations import Conversation, Message
from nanochat.data.sources import read_conversations, read_documents
from nanochat.evaluation.curves import median_of
from nanochat.evaluation.report_card import ReportCard, StageCost
from nanochat.evaluation.skills import SkillReport, evaluate_skills
from nanochat.inference.engine import Engine
from nanochat.inference.sampling import SamplingParams
from nanochat.model.accounting import parameter_counts
from nanochat.model.configuration import NanoChatConfig
from nanochat.stages.options import PretrainOptions, SftOptions, SpeedrunOptions
from nanochat.stages.pretrain import pretrain
from nanochat.stages.run import Run, console
from nanochat.stages.sft import check_options, sft
from nanochat.training.distributed import is_first
from nanochat.training.machine import this_machine
from nanochat.training.run_log import read_metrics
from nanochat.training.tracking import new_track

# What the Primer needs at depth 4 to be learnt on two CPU cores in minutes; for other data the recipe decides.
PRIMER_DEFAULTS = {"vocab_size": 2048, "seq_len": 256, "tokens": 2_000_000, "chat_tokens": 1_200_000}
LIVELY = SamplingParams(max_new_tokens=80, temperature=0.8, top_k=50, seed=0)
# Held out of the Primer's training data: an honest conversation.
DEMO_QUESTIONS = ("What is the capital of France?", "Who are you?", "What is 37 times 24?")


def speedrun(options: SpeedrunOptions) -> None:
    """Do whatever part of the run is not done yet, then show a conversation.

    Raises:
        UserError: if the folder holds a run with other options.
        Interrupted: after Ctrl-C, once a checkpoint is written.
    """
    run = Run(options.run)
    with run.locked():
        _speedrun(run, options)


def _speedrun(run: Run, options: SpeedrunOptions) -> None:
    _check_same(run, options)
    if options.data == "primer":
        chosen: dict[str, Any] = {k: v for k, v in PRIMER_DEFAULTS.items() if getattr(options, k) is None}
        options = dataclasses.replace(options, **chosen)
    begun = time.monotonic()
    shared = {name: getattr(options, name) for name in ("depth", "vocab_size", "seq_len", "tokens", "seed")}
    pretraining = PretrainOptions(data=options.data, run=options.run, track=options.track, **shared)
    tuning = SftOptions(
        data=options.chat,
        run=options.run,
        tokens=options.chat_tokens,
        epochs=options.chat_epochs,
        seed=options.seed,
        track=options.track,
    )
    check_options(tuning)
    new_track(options.track)  # refuses a wrong one now
    if not run.is_complete("base"):
        next(read_conversations(options.chat, "val"))  # a mistake in its name or form is told now, not hours later
        pretrain(PretrainOptions(run=options.run, resume=True) if run.is_begun("base") else pretraining)
    if not run.is_complete("chat"):
        sft(SftOptions(run=options.run, resume=True) if run.is_begun("chat") else tuning)
    if not is_first():
        return
    engine = Engine.from_pretrained(run.stage("chat"))
    if not run.report.exists():
        skills = _evaluate(engine) if options.chat == "primer" else None
        report(run, options, engine, skills)
        console.print(f"{time.monotonic() - begun:.0f} seconds in all; report: {run.report}\n")
    for question in _questions(options, engine)[:3]:
        _show(answer(engine, question, _style(options)))
    program, model = _program(), shlex.quote(str(run.stage("chat")))
    console.print(f"Chat on:  {program} chat {model}")
    console.print(f"In a browser:  {program} serve {model}  and open http://127.0.0.1:8000/", soft_wrap=True)


def _program() -> str:
    """How the user called this program, so that what is printed can be typed as it stands."""
    return sys.argv[0] if Path(sys.argv[0]).name == "nanochat" else "nanochat"


def answer(engine: Engine, question: str, params: SamplingParams) -> Conversation:
    """The conversation of one question and the model's reply to it."""
    asked = Message(role="user", content=question)
    [result] = engine.generate([[asked]], params)
    return [asked, Message(role="assistant", content=result.parts)]


def report(run: Run, options: SpeedrunOptions, engine: Engine, skills: SkillReport | None) -> None:
    """Write the run's `report.html`."""
    metrics = read_metrics(run.metrics)
    config: NanoChatConfig = engine.model.config  # type: ignore[assignment]
    stages = {}
    for stage in ("base", "chat"):
        recipe, _ = run.load_recipe(stage)
        records = [record for record in metrics if record["stage"] == stage]
        stages[stage] = StageCost(
            parameter_counts(config)["total"],
            recipe.steps * recipe.batch_tokens,
            recipe.flops(config),
            max(record["seconds"] for record in records),
            median_of(records, "mfu"),
        )
    base = Engine.from_pretrained(run.stage("base"))
    heads = (" ".join(text.split()[:8])[:60] for text in islice(read_documents(options.data, "val"), 4))
    beginnings = [head for head in heads if len(base.encode(head)) < base.context_length // 2]
    texts = [(b, r.text) for b, r in zip(beginnings, base.generate(beginnings, LIVELY), strict=True)]
    card = ReportCard(
        title=f"NanoChat, depth {config.num_hidden_layers}: {run.folder.name}",
        stages=stages,
        metrics=metrics,
        skills=skills,
        samples=[answer(engine, question, _style(options)) for question in _questions(options, engine)]
        + _examples(skills),
        texts=texts,
        machine=f"{this_machine().describe(recipe.dtype)}, PyTorch {torch.__version__}; "
        f"data: {options.data}, {options.chat}",
    )
    card.write(run.report)


def _style(options: SpeedrunOptions) -> SamplingParams:
    """Greedy for the Primer, whose questions have one answer; elsewhere small models run in circles when greedy."""
    return SamplingParams() if options.chat == "primer" else LIVELY


def _examples(skills: SkillReport | None) -> list[Conversation]:
    """The first question of each skill with the model's reply, right or wrong."""
    if skills is None:
        return []
    first = [answers[0] for answers in skills.answers.values()]
    return [
        [*cast(Conversation, one.question.conversation), Message(role="assistant", content=one.result.parts)]
        for one in first
    ]


def _evaluate(engine: Engine) -> SkillReport:
    console.print("held-out questions, 50 of each skill:")
    skills = evaluate_skills(engine, progress=lambda name, score: console.print(f"  {name:13} {score:.2f}"))
    console.print(f"  {'average':13} {skills.average:.3f}")
    return skills


def _questions(options: SpeedrunOptions, engine: Engine) -> list[str]:
    """Held-out questions to show, those only that leave room for an answer."""
    questions: Iterable[str] = DEMO_QUESTIONS
    if options.chat != "primer":
        turns = itertools.chain.from_iterable(
            conversation[:2] for conversation in read_conversations(options.chat, "val")
        )
        contents = (turn["content"] for turn in turns if turn["role"] == "user")
        questions = (content for content in contents if isinstance(content, str) and len(content) < 200)
    fitting = (
        q
        for q in islice(questions, 1000)
        if len(engine.encode([Message(role="user", content=q)])) <= engine.context_length // 2
    )
    return list(islice(fitting, 8))


def _show(conversation: Conversation) -> None:
    for message in conversation:
        if isinstance(message["content"], str):
            console.print(f"> {message['content']}", style="bold", markup=False)
            continue
        calculation = [part["text"] for part in message["content"] if part["type"] != "text"]
        if calculation:
            console.print(f"  calculator: {' = '.join(calculation)}", style="dim", markup=False)
        text = "".join(part["text"] for part in message["content"] if part["type"] == "text")
        console.print(f"{text}\n", markup=False)


def _check_same(run: Run, options: SpeedrunOptions) -> None:
    """Refuse options that say otherwise than what the run was begun with; `None` says nothing."""
    asked: dict[str, dict[str, Any]] = {
        "base": {"data": options.data, "tokens": options.tokens, "seed": options.seed, "depth": options.depth}
        | {"vocab_size": options.vocab_size, "seq_len": options.seq_len},
        "chat": {"data": options.chat, "tokens": options.chat_tokens, "seed": options.seed}
        | {"epochs": options.chat_epochs},
    }
    for stage, values in asked.items():
        if run.is_begun(stage):
            recipe, origin = run.load_recipe(stage)
            begun = dataclasses.asdict(recipe) | origin
            for name, value in values.items():
                if value is not None and begun.get(name, value) != value:
                    raise UserError(
                        f"{run.folder} holds a {stage} model of {name} = {begun[name]}, not {value}; choose another "
                        "--run."
                    )
