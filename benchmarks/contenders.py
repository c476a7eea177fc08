"""Who is measured in inference: this project, Transformers' NanoChat and llama.cpp, each behind one call.

`contender(name, shape)` gives a function `answer(prompts, new_tokens)` that takes lists of token ids and generates
greedily, exactly so many tokens each. All of them have random weights. `in_a_process` runs a benchmark's measurement of
one contender in a process of its own, so that no warm state leaks into the next.
"""

import importlib.util
import itertools
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

Prompts = list[list[int]]
Answer = Callable[[Prompts, int], object]

SHAPE = {"layers": 8, "hidden_size": 512, "heads": 4, "vocab_size": 32768}
CONTEXT = 2304  # of the models: 2048 and what is generated behind
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LLAMA = ("llama.cpp bf16", "llama.cpp f16", "llama.cpp q8_0", "llama.cpp q4_0")
OURS = ("nanochat fp32", "nanochat bf16", "nanochat int8", "nanochat int4")


def contender(name: str, shape: dict[str, int], device: str = "cpu") -> Answer:
    """Build a contender.

    Names: "transformers dynamic|static|compiled|generate_batch fp32|bf16", "llama.cpp bf16|f16|q8_0|q4_0", "nanochat
    fp32|bf16|int8|int4" (the engine) and "nanochat generate fp32|bf16" (our model's own `generate`).
    """
    match name.split():
        case "transformers", "generate_batch", dtype:
            return _generate_batch(_transformers_model(shape, dtype, device))
        case "transformers", mode, dtype:
            return _generate(_transformers_model(shape, dtype, device), mode)
        case "nanochat", "generate", dtype:
            return _generate(our_model(shape, device).to(DTYPES[dtype]), "dynamic")
        case "nanochat", format:
            return _engine_answer(our_engine(shape, format, device))
        case "llama.cpp", format:
            from llama_peer import LlamaPeer

            return LlamaPeer(shape, format, torch.get_num_threads())
    raise ValueError(f"there is no contender {name!r}")


def available(names: tuple[str, ...]) -> list[str]:
    """`names` without llama.cpp where it is not installed."""
    has_llama = all(map(importlib.util.find_spec, ("llama_cpp", "gguf")))
    return [name for name in names if has_llama or not name.startswith("llama.cpp")]


def our_model(shape: dict[str, int], device: str = "cpu") -> Any:
    """Our model with random weights, in fp32, for inference."""
    from nanochat import NanoChatConfig, NanoChatForCausalLM

    return _random_model(NanoChatForCausalLM, NanoChatConfig, shape, device)


def our_engine(shape: dict[str, int], format: str, device: str = "cpu") -> Any:
    """Our engine around `our_model`, with a tokenizer that has a text for every token."""
    from nanochat.inference import Engine, scheduler

    scheduler.MOST_DRAFTING = 0  # random weights repeat themselves, so guessing would pay here as it never does
    model = our_model(shape, device)
    return Engine(model, tokenizer(shape["vocab_size"]), quantize=format)


def tokenizer(vocab_size: int) -> Any:
    """A tokenizer of exactly `vocab_size` tokens, up to 65,801: all bytes, pairs of bytes, and the control tokens."""
    from nanochat.tokenizer import NanoChatTokenizer

    pieces = [bytes([byte]) for byte in range(256)] + [bytes(pair) for pair in itertools.product(range(256), repeat=2)]
    return NanoChatTokenizer.from_ranks({piece: rank for rank, piece in enumerate(pieces[: vocab_size - 9])})


def random_prompts(count: int, length: int, vocab_size: int) -> Prompts:
    """New ones at every call, so that no cache of prefixes answers for the model. Control tokens are not among them."""
    return [[random.randrange(256, vocab_size - 16) for _ in range(length)] for _ in range(count)]


def repeated(measure: Callable[[], float], seconds: float, least: int = 3, most: int = 15) -> Iterator[float]:
    """Yield measurements until `seconds` have passed and there are `least`, but not more than `most`."""
    begun = time.perf_counter()
    for n in range(most):
        if n >= least and time.perf_counter() - begun > seconds:
            return
        yield measure()


def seconds_of(work: Callable[[], object]) -> float:
    """How long it takes, on a GPU until its last kernel has run."""
    begun = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def in_a_process(script: str, name: str, *options: str, under: str = "") -> dict[str, Any]:
    """Run `script --contender name` under a command like `taskset -c 0,1`; return the JSON of its last line."""
    command = [*shlex.split(under), sys.executable, script, "--contender", name, *options]
    # Threads that wait for each other long in a busy loop make all contenders slow if anything else runs beside them.
    environment = {"GOMP_SPINCOUNT": "20000", "TRANSFORMERS_VERBOSITY": "error", **os.environ}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{name} failed with exit code {done.returncode}: see above")
    print(name, done.stdout.splitlines()[-1], file=sys.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _transformers_model(shape: dict[str, int], dtype: str, device: str) -> Any:
    from transformers import NanoChatConfig, NanoChatForCausalLM

    return _random_model(NanoChatForCausalLM, NanoChatConfig, shape, device).to(DTYPES[dtype])


def _random_model(model_class: Any, config_class: Any, shape: dict[str, int], device: str) -> Any:
    torch.manual_seed(0)
    config = config_class(
        vocab_size=shape["vocab_size"], hidden_size=shape["hidden_size"], intermediate_size=4 * shape["hidden_size"],
        num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"], num_key_value_heads=shape["heads"],
        max_position_embeddings=CONTEXT,
    )  # fmt: skip
    model = model_class(config).to(device).eval()
    model.generation_config.eos_token_id = None  # random weights would stop at random
    model.generation_config.pad_token_id = 0
    return model


def _generate(model: Any, mode: str) -> Answer:
    """`generate` with its dynamic or static cache; prompts of different lengths are padded on the left."""
    options: dict[str, Any] = {}
    if mode != "dynamic":
        options["cache_implementation"] = "static"
    if mode == "compiled":
        from transformers import CompileConfig

        options["compile_config"] = CompileConfig(fullgraph=True)
        options["compile_config"]._compile_all_devices = True

    def answer(prompts: Prompts, new_tokens: int) -> None:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        out = model.generate(ids, attention_mask=mask.to(model.device), max_new_tokens=new_tokens, **options)
        assert out.shape[1] == longest + new_tokens

    return answer


def _generate_batch(model: Any) -> Answer:
    """Transformers' continuous batching."""
    from transformers import GenerationConfig

    model.set_attn_implementation("paged|sdpa")

    def answer(prompts: Prompts, new_tokens: int) -> None:
        config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        results = model.generate_batch(prompts, generation_config=config)
        assert [len(result.generated_tokens) for result in results.values()] == [new_tokens] * len(prompts)

    return answer


def _engine_answer(engine: Any) -> Answer:
    from nanochat.inference import SamplingParams

    def answer(prompts: Prompts, new_tokens: int) -> None:
        results = engine.generate(prompts, SamplingParams(max_new_tokens=new_tokens, stop_token_ids=()))
        assert [len(result.token_ids) for result in results] == [new_tokens] * len(prompts)

    return answer
