"""The books of the cache alone: who has which page, what is remembered and what is forgotten first."""

import random

from scripted_model import BOS, TOKENIZER

from nanochat.inference import SamplingParams
from nanochat.inference.cache import KVCache
from nanochat.inference.request import Request, Sample
from nanochat.inference.transcript import Vocabulary
from nanochat.native.decoder import PAGE

VOCABULARY = Vocabulary(TOKENIZER)


def sample_of(tokens: list[int]) -> Sample:
    return Request(tokens, SamplingParams(), VOCABULARY, 10**6).samples[0]


def compute(cache: KVCache, tokens: list[int]) -> tuple[Sample, int]:
    """A sample with its pages filled and known; and how many tokens were known before."""
    sample = sample_of(tokens)
    known = cache.take_known(sample)
    assert cache.reserve(sample, len(tokens))
    sample.computed = len(tokens)
    cache.register(sample)
    return sample, known


def test_pages_are_shared_while_used_and_remembered_after() -> None:
    cache = KVCache(10)
    text = list(range(40))
    first, known = compute(cache, text)
    assert (known, len(first.pages), cache.free, cache.cached) == (0, 3, 7, 2)
    second, known = compute(cache, [*text[:33], 99])
    assert (known, second.pages[:2], cache.free) == (32, first.pages[:2], 6)
    cache.release(first)
    assert (cache.free, first.pages) == (7, [])
    cache.release(second)
    assert cache.free == 10
    assert compute(cache, text)[1] == 32


def test_a_page_is_known_by_all_tokens_before_it() -> None:
    cache = KVCache(10)
    cache.release(compute(cache, [1] * 16 + [2] * 16 + [3])[0])
    assert compute(cache, [2] * 16 + [2] * 16 + [3])[1] == 0
    assert compute(cache, [1] * 16 + [3] * 17)[1] == 16


def test_what_was_unused_longest_is_forgotten_first_and_ends_before_beginnings() -> None:
    cache = KVCache(6)
    old, new = [1] * 48, [2] * 48
    cache.release(compute(cache, old)[0])
    cache.release(compute(cache, new)[0])
    third = sample_of([3] * 32)
    assert cache.reserve(third, 32)  # the last pages of `old`
    assert cache.take_known(sample_of([*new, 0])) == 48
    assert cache.take_known(sample_of([*old, 0])) == 16


def test_too_few_pages_change_nothing() -> None:
    cache = KVCache(3)
    first, _ = compute(cache, [1] * 32)
    second = sample_of([2] * 32)
    assert not cache.reserve(second, 32)
    assert (second.pages, cache.free) == ([], 1)
    assert cache.reserve(second, 16)
    assert not cache.reserve(second, 17)
    assert len(second.pages) == 1
    cache.release(first)
    assert cache.reserve(second, 48)


def test_the_same_page_computed_twice_is_known_once() -> None:
    cache = KVCache(8)
    one, other = sample_of([1] * 33), sample_of([1] * 33)
    for sample in (one, other):  # side by side: neither is known when the other begins
        assert cache.take_known(sample) == 0
        assert cache.reserve(sample, 33)
        sample.computed = 33
    for sample in (one, other):
        cache.register(sample)
    assert cache.cached == 2
    assert one.chain == other.chain
    cache.release(one)
    cache.release(other)
    assert (cache.free, cache.cached) == (8, 2)


def test_known_tokens_are_always_right() -> None:
    """Whatever comes and goes, a page that is given out as known holds just these tokens."""
    rng = random.Random(0)
    cache = KVCache(12)
    written: dict[int, tuple[int, ...]] = {}  # by page: the tokens before its end
    running: list[Sample] = []
    for _ in range(2000):
        if running and (rng.random() < 0.5 or cache.free < 4):
            cache.release(running.pop(rng.randrange(len(running))))
            continue
        tokens = [BOS, *(rng.randrange(2) for _ in range(rng.choice([15, 16, 17])))] * rng.choice([1, 2, 3])
        sample = sample_of(tokens)
        known = cache.take_known(sample)
        assert known < len(tokens)
        for n in range(known // PAGE):
            assert written[sample.pages[n]] == tuple(tokens[: (n + 1) * PAGE])
        if not cache.reserve(sample, len(tokens)):
            cache.release(sample)
            continue
        for n in range(known // PAGE, len(tokens) // PAGE):
            written[sample.pages[n]] = tuple(tokens[: (n + 1) * PAGE])
        sample.computed = len(tokens)
        cache.register(sample)
        running.append(sample)
    for sample in running:
        cache.release(sample)
    assert cache.free == 12
