"""The command line: one verb per job. Each verb parses, calls and prints; what it calls is imported when it runs."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from nanochat.common import Interrupted, UserError
from nanochat.stages.options import PretrainOptions, SftOptions, SpeedrunOptions

Quantize = Literal["bf16", "int8", "int4"]


def pretrain(options: Annotated[PretrainOptions, tyro.conf.arg(name="")]) -> None:
    """Pretrain a model from random weights on plain text."""
    from nanochat.stages.pretrain import pretrain, print_recipe

    (print_recipe if options.print_recipe else pretrain)(options)


def sft(options: Annotated[SftOptions, tyro.conf.arg(name="")]) -> None:
    """Tune a base model on conversations."""
    from nanochat.stages.sft import sft

    sft(options)


def speedrun(options: Annotated[SpeedrunOptions, tyro.conf.arg(name="")]) -> None:
    """From nothing to a chat: tokenizer, pretraining, chat tuning, evaluation, report, conversation."""
    from nanochat.stages.speedrun import speedrun

    speedrun(options)


def compare(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    out: Path = Path("compare.html"),
    price_per_hour: float | None = None,
) -> None:
    """Compare runs: final figures here, and a page of their curves over steps, tokens, time and FLOPs.

    Args:
        runs: their folders; they may still be in progress.
        out: the page to write.
        price_per_hour: of the machine in dollars, to show what each run cost.
    """
    from nanochat.stages.compare import compare

    compare(runs, out, price_per_hour)


def chat(
    model: tyro.conf.Positional[str | None] = None,
    prompt: str | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    max_new_tokens: int = 256,
    seed: int | None = None,
    quantize: Quantize | None = None,
) -> None:
    """Chat with a model in the terminal.

    Args:
        model: a model folder or a hub id; the newest model under runs/ if none is given.
        prompt: answer this one message on standard output and leave.
        temperature: 0 always takes the likeliest token; 0.7 is lively.
        top_k: sample among so many likeliest tokens only.
        top_p: sample among the likeliest tokens that together have this probability.
        max_new_tokens: longest answer.
        seed: makes a sampled answer repeatable.
        quantize: round the weights, for speed on a CPU; as they are if not given.
    """
    from nanochat.inference.engine import Engine
    from nanochat.inference.sampling import SamplingParams
    from nanochat.serving import terminal

    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    engine = Engine.from_pretrained(model or terminal.newest_model(Path("runs")), quantize)
    terminal.chat(engine, params=params, prompt=prompt)


def serve(
    model: tyro.conf.Positional[str | None] = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    quantize: Quantize | None = None,
    max_waiting: int = 256,
    time_limit: float = 600.0,
    allow_host: tuple[str, ...] = (),
    allow_origin: tuple[str, ...] = (),
    log_content: bool = False,
) -> None:
    """Serve a model to OpenAI clients, and a chat page to browsers.

    Args:
        model: a model folder or a hub id; the newest model under runs/ if none is given.
        host: address to listen on; 0.0.0.0 lets other machines in.
        port: 0 takes a free one.
        api_key: what clients must present. Better in the environment, as NANOCHAT_API_KEY: others can't see it there.
        quantize: keep the weights in fewer bits.
        max_waiting: requests that may wait for the engine; one more is told to come back later (429).
        time_limit: seconds an answer may take; what there is by then is the answer.
        allow_host: names beside localhost by which clients address this server.
        allow_origin: web pages that may use the API, like https://example.org.
        log_content: log what is asked and answered.
    """
    from nanochat.inference import Engine
    from nanochat.serving import server, terminal

    source = model or str(terminal.newest_model(Path("runs")))
    settings = server.Settings(
        model=server.model_id(source),
        api_key=api_key or os.environ.get("NANOCHAT_API_KEY"),
        allowed_hosts=allow_host,
        allowed_origins=allow_origin,
        max_waiting=max_waiting,
        time_limit=time_limit,
        log_content=log_content,
    )
    server.serve(lambda: Engine.from_pretrained(source, quantize=quantize), settings, host, port)


def bench(model: tyro.conf.Positional[str | None] = None, quantize: Quantize | None = None) -> None:
    """Measure how fast a model answers on this machine, and what share of the memory bandwidth that takes.

    Args:
        model: a model folder or a hub id; the newest model under runs/ if none is given.
        quantize: round the weights, for speed on a CPU; as they are if not given.
    """
    from nanochat.inference.bench import bench
    from nanochat.inference.engine import Engine
    from nanochat.serving.terminal import newest_model

    bench(Engine.from_pretrained(model or newest_model(Path("runs")), quantize), quantize)


def evaluate(
    model: tyro.conf.Positional[str | None] = None,
    questions: int = 50,
    seed: int = 1,
    quantize: Quantize | None = None,
) -> None:
    """Score a chat model on the held-out questions of the Primer's skills.

    Args:
        model: a model folder or a hub id; the newest model under runs/ if none is given.
        questions: how many of each skill.
        seed: of the questions.
        quantize: round the weights first; as they are if not given.
    """
    from nanochat.evaluation.skills import evaluate_skills
    from nanochat.inference.engine import Engine
    from nanochat.serving.terminal import newest_model

    engine = Engine.from_pretrained(model or newest_model(Path("runs")), quantize)
    report = evaluate_skills(engine, questions, seed, progress=lambda name, score: print(f"{name:13} {score:.2f}"))
    print(f"{'average':13} {report.average:.3f}")


def primer(seed: int = 0) -> None:
    """Show samples of the Primer: documents, and a held-out question of every skill.

    Args:
        seed: of the samples.
    """
    from nanochat.data.primer import sample

    print(sample(seed))


def train_tokenizer(out: tyro.conf.Positional[Path], data: str = "primer", vocab_size: int = 32768) -> None:
    """Train a tokenizer and write it to a folder.

    Args:
        out: folder to write.
        data: `primer`, a file (.txt, .jsonl, .parquet), a folder of them, a hub data set id, or several with commas.
        vocab_size: number of tokens, the nine special ones included.
    """
    from nanochat.stages.tokenizer import train

    train(out, data, vocab_size)


def convert(
    original: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    step: int | None = None,
    tokenizer: Path | None = None,
    to: Literal["transformers", "original"] = "transformers",
) -> None:
    """Convert a checkpoint of the original nanochat (model_*.pt) into a model folder, or back.

    Args:
        original: folder to read.
        out: folder to write.
        step: which checkpoint, the newest if not given; with --to original the step to write.
        tokenizer: folder or file of the original's tokenizer.pkl, where it is not beside the checkpoint.
        to: the direction. The original has an RMSNorm epsilon of its own (1.2e-7), which a way there and back brings.
    """
    from nanochat.checkpoints.original import convert_original, export_original

    if to == "transformers":
        convert_original(original, out, step=step, tokenizer=tokenizer)
    else:
        export_original(original, out, step=step or 0)
    print(out)


VERBS: dict[str, Callable[..., Any]] = {
    "speedrun": speedrun,
    "pretrain": pretrain,
    "sft": sft,
    "compare": compare,
    "chat": chat,
    "serve": serve,
    "bench": bench,
    "evaluate": evaluate,
    "primer": primer,
    "tokenizer train": train_tokenizer,
    "convert": convert,
}


def main() -> None:
    """Entry point of `nanochat`. Exit codes: 0 done, 2 a mistake of the user's, 130 stopped by the user."""
    # PyTorch's threads wait for each other in a busy loop; with another program on the machine, and the default
    # patience of GNU OpenMP, that makes training four times slower (docs/log.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; the reason is in our own error
    arguments = sys.argv[1:]
    if arguments[:1] == ["tokenizer"]:  # a verb of two words is one to tyro
        arguments = ["tokenizer train", *arguments[2 if arguments[1:2] == ["train"] else 1 :]]
    try:
        tyro.extras.subcommand_cli_from_dict(
            VERBS,
            prog="nanochat",
            description="Train, understand, run and serve your own small ChatGPT.",
            args=arguments,
            config=(tyro.conf.DisallowNone,),
        )
    except (UserError, OSError) as error:
        print(f"nanochat: {error}", file=sys.stderr)
        sys.exit(2)
    except (Interrupted, KeyboardInterrupt):
        sys.exit(130)
