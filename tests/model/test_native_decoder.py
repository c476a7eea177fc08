"""The native decoder computes what the model does, in every format; and the same to the bit however it is asked."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_models import (
    RoundedCache,
    decoder_of,
    native_logits,
    native_model,
    needs_native,
    plain_logits,
    random_sequences,
    rounded_twin,
)

from nanochat.native import decoder as decoder_module
from nanochat.native.packing import FORMATS

pytestmark = needs_native

LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
ROPES = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {"rope_type": "llama3", **LLAMA3},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}


def assert_parity(**changes: Any) -> None:
    model = native_model(**changes)
    [tokens] = random_sequences(model.config.vocab_size, [70])
    expected = plain_logits(model, tokens)
    [seen] = native_logits(decoder_of(model), [tokens], chunks=30)
    assert seen.shape == expected.shape
    assert expected.std() > 0.1
    torch.testing.assert_close(seen, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_heads_may_share_keys_and_values(kv_heads: int) -> None:
    assert_parity(num_key_value_heads=kv_heads)


@pytest.mark.parametrize("head_dim", [16, 32, 48, 64, 80, 128])
def test_head_sizes(head_dim: int) -> None:
    assert_parity(hidden_size=2 * head_dim, num_attention_heads=2, num_key_value_heads=1)


def test_sixteen_heads_on_one() -> None:
    assert_parity(hidden_size=256, num_attention_heads=16, num_key_value_heads=1)


@pytest.mark.parametrize("vocab_size", [1, 15, 16, 17, 71, 265])
def test_vocabularies(vocab_size: int) -> None:
    model = native_model(vocab_size=vocab_size, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    [tokens] = random_sequences(vocab_size, [20])
    [seen] = native_logits(decoder_of(model), [tokens])
    torch.testing.assert_close(seen, plain_logits(model, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("cap", [None, 1.0, 30.0])
def test_softcaps(cap: float | None) -> None:
    assert_parity(final_logit_softcapping=cap)


@pytest.mark.parametrize("rope", ROPES)
def test_rotary_embeddings(rope: str) -> None:
    assert_parity(rope_parameters={"rope_theta": 10_000.0, **ROPES[rope]})


def test_other_constants() -> None:
    assert_parity(rms_norm_eps=0.1, tie_word_embeddings=True, rope_parameters={"rope_theta": 100.0})


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_shapes(data: st.DataObject) -> None:
    kv_heads, share = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.sampled_from([1, 2, 5, 7]))
    head_dim = data.draw(st.sampled_from([16, 32, 48]))
    model = native_model(
        seed=data.draw(st.integers(0, 100)),
        num_hidden_layers=data.draw(st.integers(1, 3)),
        num_attention_heads=kv_heads * share,
        num_key_value_heads=kv_heads,
        hidden_size=kv_heads * share * head_dim,
        intermediate_size=16 * data.draw(st.integers(1, 40)),
        vocab_size=data.draw(st.integers(3, 200)),
    )
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=4))
    sequences = random_sequences(model.config.vocab_size, lengths)
    threads = data.draw(st.sampled_from([1, 1, 2]))
    for tokens, seen in zip(sequences, native_logits(decoder_of(model, threads=threads), sequences, chunks=25)):
        torch.testing.assert_close(seen, plain_logits(model, tokens), atol=2e-4, rtol=0)


def test_the_longest_context() -> None:
    model = native_model(max_position_embeddings=5000, num_hidden_layers=1)
    [tokens] = random_sequences(model.config.vocab_size, [5000])
    [seen] = native_logits(decoder_of(model, pages=320), [tokens], chunks=1500)
    torch.testing.assert_close(seen[-500:], plain_logits(model, tokens)[-500:], atol=1e-4, rtol=0)


# Formats


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_rounded_weights_give_what_their_twin_gives(format: str) -> None:
    model = native_model(hidden_size=128, num_hidden_layers=3)
    [tokens] = random_sequences(model.config.vocab_size, [90])
    [seen] = native_logits(decoder_of(model, format), [tokens], chunks=40)
    # Where fp32 differs in the last bit, a key may round to another bf16: rarely, and by 1 in 256.
    expected = plain_logits(rounded_twin(model, format), tokens, RoundedCache())
    error = (seen - expected).abs()
    assert error.max() < 0.03
    assert error.mean() < 0.002
    assert error.max() < 0.2 * (plain_logits(model, tokens) - expected).abs().max()  # it is this rounding and no other


def test_a_model_in_bf16_is_computed_from_its_own_weights() -> None:
    model = native_model().to(torch.bfloat16)
    [tokens] = random_sequences(model.config.vocab_size, [50])
    [seen] = native_logits(decoder_of(model, "bf16"), [tokens])
    expected = plain_logits(model.float(), tokens, RoundedCache())
    assert (seen - expected).abs().max() < 0.01


def test_large_chunks_by_pytorchs_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.model.native.bfloat16_pays", lambda device: True)
    model = native_model().to(torch.bfloat16)
    sequences = random_sequences(model.config.vocab_size, [90, 130, 20])
    in_bf16 = [plain_logits(model, tokens) for tokens in sequences]
    decoders = [decoder_of(model, "bf16", threads=threads) for threads in (1, 2)]
    exact = [plain_logits(model.float(), tokens) for tokens in sequences]
    for decoder in decoders:
        for seen, theirs, expected in zip(native_logits(decoder, sequences, chunks=120), in_bf16, exact):
            assert (seen - expected).abs().mean() < 1.2 * (theirs - expected).abs().mean()


# To the bit


WIDE = {"num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 160}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("threads", "sizes"), [(1, {}), (1, WIDE), (2, WIDE)])
def test_neither_batch_nor_chunks_nor_threads_nor_pages_change_a_bit(
    format: str, threads: int, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_module, "ALONE", 0)
    # The one exception: where a processor is quick at bf16, PyTorch multiplies the chunks of many tokens.
    monkeypatch.setattr("nanochat.model.native.bfloat16_pays", lambda device: False)
    model = native_model(intermediate_size=1120, **sizes)  # products in several blocks of k
    sequences = random_sequences(model.config.vocab_size, [1, 5, 16, 17, 33, 64])
    alone = [native_logits(decoder_of(model, format), [tokens])[0] for tokens in sequences]
    for seed, chunks in enumerate([1, 3, 7, 13, 64] if threads == 1 else [20]):
        together = native_logits(decoder_of(model, format, threads=threads), sequences, chunks, seed)
        assert all(map(torch.equal, together, alone))


def test_what_pages_held_before_is_not_seen() -> None:
    model = native_model()
    decoder = decoder_of(model, pages=4)
    first, second = random_sequences(model.config.vocab_size, [64, 40], seed=1)
    native_logits(decoder, [first])
    assert torch.equal(native_logits(decoder, [second])[0], native_logits(decoder_of(model), [second])[0])


def test_only_the_rows_asked_for_come() -> None:
    model = native_model()
    [tokens] = random_sequences(model.config.vocab_size, [20])
    [every] = native_logits(decoder_of(model), [tokens])
    decoder = decoder_of(model)
    some = decoder.step(tokens, [0, 20], [20], [[3, 1]], [19, 0, 7])
    assert torch.equal(some, every[[19, 0, 7]])
    assert decoder.step(tokens, [0, 20], [20], [[3, 1]], []).shape == (0, model.config.vocab_size)


# What is no number


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["model.embed_tokens", "model.layers.1.self_attn.v_proj", "model.layers.0.mlp.fc2"])
def test_damaged_weights_are_seen_in_the_logits(format: str, bad: float, where: str) -> None:
    model = native_model()
    model.get_submodule(where).weight.data[5, 7] = bad
    [seen] = native_logits(decoder_of(model, format), [[1, 5, 5]])
    assert not seen[-1].isfinite().any()


def test_a_damaged_token_hurts_only_those_who_have_it() -> None:
    model = native_model()
    sequences = [[1, 2, 3], [1, 5, 3]]
    before = native_logits(decoder_of(model), sequences)
    model.model.embed_tokens.weight.data[5] = math.nan
    after = native_logits(decoder_of(model), sequences, chunks=3)
    assert torch.equal(before[0], after[0])
    assert not after[1][1:].isfinite().any()
