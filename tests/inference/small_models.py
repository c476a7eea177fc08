"""Small models with random weights, what Transformers makes of them, and the books of an engine's cache."""

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from scripted_model import BOS, CONTROL, END, TOKENIZER
from transformers.models.nanochat import NanoChatForCausalLM as TheirModel

from nanochat.inference import Delta, Engine, Request, SamplingParams, Token
from nanochat.model.configuration import NanoChatConfig
from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.native.decoder import PAGE, decoder_library

needs_native = pytest.mark.skipif(decoder_library() is None, reason="there is no C compiler")
RUNNERS = [pytest.param("native", marks=needs_native), "torch"]


def random_model(classes: Any = NanoChatForCausalLM, **changes: Any) -> Any:
    """A model in evaluation mode whose logits differ well; the same weights for the same sizes, in any class."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": BOS, "eos_token_id": END, "pad_token_id": BOS}
    heads = {"num_key_value_heads": 2, "max_position_embeddings": 96, "vocab_size": 265}
    model = classes(NanoChatConfig(**{**sizes, **ids, **heads, **changes}))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return model.eval()


def engine_of(runner: str, model: Any = None, **options: Any) -> Engine:
    """An engine on the native decoder ("native") or on the model itself in PyTorch ("torch")."""
    with pytest.MonkeyPatch.context() as patch:
        if runner == "torch":
            patch.setenv("NANOCHAT_NATIVE", "0")
            patch.setattr("nanochat.model.native.decoder_library", lambda: None)
        engine = Engine(model or random_model(), TOKENIZER, **options)
    assert engine.describe().startswith("native" if runner == "native" else "PyTorch"), engine.describe()
    return engine


def random_prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[BOS, *(rng.randrange(256) for _ in range(rng.randrange(longest)))] for _ in range(count)]


def plain_generate(model: Any, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
    """The greedy answers of Transformers' `generate`, each with its stop token; prompts of one length go together."""
    model.set_attn_implementation("eager")
    answers: dict[tuple[int, ...], list[int]] = {}
    for length, group in itertools.groupby(sorted(prompts, key=len), key=len):
        rows = [list(row) for row in group]
        ids = model.generate(
            torch.tensor(rows),
            attention_mask=torch.ones(len(rows), length),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            suppress_tokens=CONTROL,
            eos_token_id=[END, BOS],
            pad_token_id=0,
        )
        answers |= {tuple(row): up_to_stop(answer) for row, answer in zip(rows, ids[:, length:].tolist())}
    return [answers[tuple(prompt)] for prompt in prompts]


def up_to_stop(tokens: list[int]) -> list[int]:
    ends = [n for n, token in enumerate(tokens, 1) if token in (END, BOS)]
    return tokens[: ends[0]] if ends else tokens


def their_answers(prompts: Sequence[list[int]], max_new_tokens: int, **changes: Any) -> list[list[int]]:
    """The greedy answers of Transformers' own class with the weights of `random_model`."""
    return plain_generate(random_model(TheirModel, **changes), prompts, max_new_tokens)


def run(engine: Engine, prompts: Iterable[Any], params: SamplingParams) -> list[list[int]]:
    return [result.token_ids for result in engine.generate(list(prompts), params)]


def finish(engine: Engine) -> list[tuple[Request, Delta]]:
    """Step until nothing is left to do, and look at the books each time."""
    emitted = []
    while engine.has_work:
        emitted += engine.step()
        check_books(engine)
    return emitted


def tokens_of(deltas: Iterable[Delta]) -> list[Token]:
    return [token for delta in deltas for token in delta.tokens]


def check_books(engine: Engine) -> None:
    """Every page is empty, idle, or held by as many running answers as the cache believes; none is mixed up."""
    cache, scheduler = engine._cache, engine._scheduler
    held = Counter(page for sample in scheduler.running for page in sample.pages)
    assert cache._users == [held[page] for page in range(cache.pages)]
    idle, empty = set(cache._idle), set(cache._empty)
    assert len(empty) == len(cache._empty)
    assert not idle & empty
    assert idle | empty == set(range(cache.pages)) - set(held)
    assert cache.free + len(held) == cache.pages
    assert cache._page_of == {key: page for page, key in cache._key_of.items()}
    assert set(cache._key_of) == set(cache._name_of)
    assert idle <= set(cache._key_of)
    assert not empty & set(cache._key_of)
    assert {page for page, users in held.items() if users > 1} <= set(cache._key_of)
    assert not any(sample.pages or sample.computed for sample in scheduler.waiting)
    for sample in scheduler.running:
        assert sample.finish_reason is None
        assert sample.registered * PAGE <= sample.computed <= len(sample.pages) * PAGE
        assert sample.computed < sample.length
    if not engine.has_work:
        assert cache.free == cache.pages
