"""The one dial: valid for every depth, open to every choice, clear about the impossible. No tuned numbers here."""

import dataclasses
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_setup import recipe

from nanochat.common import UserError
from nanochat.model.accounting import flops_per_token, parameter_counts
from nanochat.training.recipe import Recipe


@pytest.mark.parametrize("depth", [*range(1, 13), 16, 20, 24, 26, 32, 40])
def test_every_depth_gives_a_whole_recipe(depth):
    made = Recipe.from_depth(depth, 32768, dtype="float32")
    config = made.config()  # which validates itself
    assert config.num_hidden_layers == depth
    assert config.hidden_size >= 64 * depth and config.hidden_size % config.num_attention_heads == 0
    assert config.hidden_size // config.num_attention_heads == 128
    assert config.vocab_size == 32768 and config.max_position_embeddings == made.seq_len
    assert made.batch_tokens == made.batch_size * made.seq_len
    assert 1 <= made.micro_batch_tokens <= made.batch_tokens
    assert made.tokens == made.steps * made.batch_tokens
    assert 0 < made.warmup_steps < made.steps
    assert 0 < made.decay_fraction <= 1 and 0 <= made.final_lr_fraction < 1


def test_a_deeper_model_is_larger_and_sees_more():
    recipes = [Recipe.from_depth(depth, 32768, dtype="float32") for depth in range(2, 26, 2)]
    for shallow, deep in itertools.pairwise(recipes):
        assert deep.hidden_size > shallow.hidden_size
        assert deep.tokens > shallow.tokens
        assert deep.batch_tokens >= shallow.batch_tokens - 8 * deep.seq_len  # rounded to eights of rows
        assert deep.seq_len >= shallow.seq_len
        assert deep.flops(deep.config()) > shallow.flops(shallow.config())


CHOICES = {
    "seq_len": 96, "tokens": 123_456, "batch_tokens": 1920, "micro_batch_tokens": 480, "matrix_lr": 0.123,
    "embedding_lr": 0.234, "head_lr": 0.345, "weight_decay": 0.456, "warmup_steps": 17, "decay_fraction": 0.5,
    "final_lr_fraction": 0.25, "seed": 99, "dtype": "float32",
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_a_chosen_value_wins(name):
    chosen = {"seq_len": 96, "dtype": "float32", name: CHOICES[name]}
    assert getattr(Recipe.from_depth(3, 500, **chosen), name) == CHOICES[name]


def test_all_values_chosen_at_once():
    made = Recipe.from_depth(3, 500, **CHOICES)
    assert {name: getattr(made, name) for name in CHOICES} == CHOICES
    assert made.steps == 65  # 64.3 batches: the last one is whole too


def test_none_leaves_the_computed_value():
    assert Recipe.from_depth(3, 500, seq_len=None, tokens=None, dtype="float32") == Recipe.from_depth(
        3, 500, dtype="float32"
    )


@settings(deadline=None)
@given(st.integers(1, 48), st.integers(265, 2**17), st.integers(1, 4096), st.integers(1, 10**12))
def test_any_size_gives_a_recipe_that_can_run(depth, vocab_size, seq_len, tokens):
    made = Recipe.from_depth(depth, vocab_size, seq_len=seq_len, tokens=tokens, dtype="float32")
    assert made.batch_tokens % seq_len == 0 and made.batch_size >= 1 and made.steps >= 1
    assert made.tokens == tokens
    assert made.warmup_steps >= 1


IMPOSSIBLE = [
    ("depth", 0), ("depth", -3), ("seq_len", 0), ("seq_len", -8), ("tokens", 0), ("tokens", -1),
    ("batch_tokens", 0), ("batch_tokens", -96), ("micro_batch_tokens", 0), ("micro_batch_tokens", -1),
    ("matrix_lr", -0.1), ("matrix_lr", float("nan")), ("embedding_lr", float("inf")), ("head_lr", -1.0),
    ("weight_decay", -0.1), ("seed", -1), ("dtype", "float16"), ("dtype", "bf16"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), IMPOSSIBLE)
def test_an_impossible_value_is_named(name, value):
    values = {"depth": 2, "vocab_size": 500, "seq_len": 96, "dtype": "float32"} | {name: value}
    with pytest.raises(UserError, match=name) as error:
        Recipe.from_depth(**values)
    assert str(value) in str(error.value)


def test_a_batch_of_broken_rows_is_refused_with_the_next_whole_one():
    with pytest.raises(UserError, match=r"batch_tokens must be a multiple of seq_len = 96.*got 1000; try 1056"):
        Recipe.from_depth(2, 500, seq_len=96, batch_tokens=1000, dtype="float32")


def test_flops_are_those_of_all_its_tokens():
    made = recipe(steps=7)
    assert made.flops(made.config()) == 7 * 64 * flops_per_token(made.config(), 16)


def test_the_summary_names_what_will_happen():
    made = recipe(steps=7)
    text = made.summary(made.config())
    total = parameter_counts(made.config())["total"]
    for part in ("depth 2", "width 32", "2 heads", f"{total / 1e6:.1f} M parameters", "7 steps of 4 rows x 16 tokens"):
        assert part in text


def test_a_recipe_goes_through_json():
    made = recipe()
    assert Recipe(**json.loads(json.dumps(dataclasses.asdict(made)))) == made


@pytest.mark.parametrize("depth", [4, 7, 12, 20, 32])
def test_large_batches_can_be_shared_by_eight_processes(depth):
    made = Recipe.from_depth(depth, 32768, dtype="float32")
    assert made.batch_size < 8 or made.batch_size % 8 == 0
