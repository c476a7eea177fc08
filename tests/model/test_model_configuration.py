"""The configuration: the seed page's defaults, what is computed, and impossible ones refused with a remedy."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import random_ids, tiny_config, tiny_model
from transformers import AutoConfig
from transformers.models.nanochat import NanoChatConfig as TheirConfig

from nanochat import NanoChatConfig, NanoChatForCausalLM, NanoChatModel

DEFAULTS = {  # of the seed page
    "vocab_size": 50304,
    "hidden_size": 768,
    "intermediate_size": 8192,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 2048,
    "hidden_act": "relu2",
    "attention_dropout": 0.0,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "use_cache": True,
    "final_logit_softcapping": 15.0,
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_default(name: str) -> None:
    assert getattr(NanoChatConfig(), name) == DEFAULTS[name]
    assert getattr(NanoChatConfig(), name) == getattr(TheirConfig(), name)


def test_every_setting_of_theirs_is_one_of_ours() -> None:
    ours, theirs = NanoChatConfig().to_dict(), TheirConfig().to_dict()
    assert ours == theirs


def test_the_seed_pages_own_example() -> None:
    with torch.device("meta"):  # the page's own example makes a model of 170 million random numbers
        configuration = NanoChatConfig()
        model = NanoChatModel(configuration)
        configuration = model.config
    assert isinstance(configuration, NanoChatConfig)
    assert model.embed_tokens.weight.shape == (50304, 768)


def test_computed_sizes() -> None:
    config = NanoChatConfig(hidden_size=96, num_attention_heads=4, intermediate_size=None, num_key_value_heads=None)
    assert config.intermediate_size == 384
    assert config.num_key_value_heads == 4


def test_bare_rope_theta_is_honoured_and_survives_saving(tmp_path: Path) -> None:
    tiny_config(rope_theta=123.0).save_pretrained(tmp_path)
    for config in (tiny_config(rope_theta=123.0), AutoConfig.from_pretrained(tmp_path)):
        assert config.rope_parameters == {"rope_theta": 123.0, "rope_type": "default"}
    scaled = tiny_config(rope_theta=123, rope_parameters={"rope_type": "linear", "factor": 2.0})
    assert scaled.rope_parameters["rope_theta"] == 123


def test_old_rope_scaling_dictionaries(tmp_path: Path) -> None:
    config = tiny_config(rope_scaling={"type": "linear", "factor": 2.0}, rope_theta=77.0)
    assert config.rope_parameters["rope_type"] == "linear"
    assert config.rope_parameters["rope_theta"] == 77.0
    old = tiny_config().to_dict() | {"rope_scaling": {"rope_type": "linear", "factor": 3.0}, "rope_theta": 88.0}
    del old["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.rope_parameters["rope_type"] == "linear"
    assert (loaded.rope_parameters["factor"], loaded.rope_parameters["rope_theta"]) == (3.0, 88.0)


@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
def test_the_callers_rope_dictionary_is_left_alone(name: str) -> None:
    mine = {"rope_type": "linear", "factor": 2.0}
    one = tiny_config(**{name: mine}, rope_theta=50.0)
    two = tiny_config(**{name: mine})
    assert mine == {"rope_type": "linear", "factor": 2.0}
    assert one.rope_parameters["rope_theta"] == 50.0
    assert two.rope_parameters["rope_theta"] == 10000.0


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    config = tiny_config(
        num_key_value_heads=2,
        attention_bias=True,
        final_logit_softcapping=None,
        eos_token_id=[3, 4],
        pad_token_id=None,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
    )
    config.save_pretrained(tmp_path)
    assert NanoChatConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert TheirConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_a_config_that_sets_head_dim_as_it_is_anyway() -> None:
    assert tiny_config(head_dim=8).hidden_size == 32
    assert "head_dim" not in tiny_config(head_dim=8).to_dict()


IMPOSSIBLE: list[tuple[dict[str, Any], list[str]]] = [
    ({"vocab_size": 0}, ["vocab_size must be positive", "0"]),
    ({"hidden_size": -8}, ["hidden_size must be positive", "-8"]),
    ({"intermediate_size": 0}, ["intermediate_size must be positive", "0"]),
    ({"intermediate_size": -3}, ["intermediate_size must be positive", "-3"]),
    ({"num_hidden_layers": 0}, ["num_hidden_layers must be positive", "0"]),
    ({"num_attention_heads": 0}, ["num_attention_heads must be positive", "0"]),
    ({"num_key_value_heads": 0}, ["num_key_value_heads must be positive", "0"]),
    ({"num_key_value_heads": -1}, ["num_key_value_heads must be positive", "-1"]),
    ({"max_position_embeddings": 0}, ["max_position_embeddings must be positive", "0"]),
    ({"rms_norm_eps": 0.0}, ["rms_norm_eps must be positive", "0.0"]),
    ({"hidden_size": 33}, ["num_attention_heads must divide hidden_size", "4", "33", "hidden_size=36"]),
    ({"num_key_value_heads": 3}, ["num_key_value_heads must divide num_attention_heads=4", "3", "[1, 2, 4]"]),
    ({"num_key_value_heads": 8}, ["num_key_value_heads must divide num_attention_heads=4", "8", "[1, 2, 4]"]),
    ({"hidden_size": 12}, ["even head size", "12 / 4 = 3", "hidden_size=16"]),
    ({"hidden_act": "relu3"}, ["'relu3'", "relu2", "gelu"]),
    ({"attention_dropout": 1.5}, ["attention_dropout must be between 0 and 1", "1.5"]),
    ({"attention_dropout": -0.1}, ["attention_dropout must be between 0 and 1", "-0.1"]),
    ({"initializer_range": -0.1}, ["initializer_range must not be negative", "-0.1"]),
    ({"final_logit_softcapping": 0.0}, ["final_logit_softcapping must be positive", "0.0", "None"]),
    ({"final_logit_softcapping": -15.0}, ["final_logit_softcapping must be positive", "-15.0", "None"]),
    ({"bos_token_id": 64}, ["bos_token_id must be within the vocabulary, 0 to 63", "64"]),
    ({"pad_token_id": -1}, ["pad_token_id must be within the vocabulary", "-1", "None"]),
    ({"eos_token_id": [1, 64]}, ["eos_token_id must be within the vocabulary", "64"]),
    ({"head_dim": 16}, ["head_dim", "8", "16", "leave it out"]),
    ({"rope_parameters": {"rope_type": "spiral"}}, ["'spiral'", "default", "llama3"]),
    ({"rope_theta": 0.0}, ["rope_theta must be positive", "0.0"]),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": None}}, ["rope_theta must be positive", "None"]),
    ({"rope_parameters": {"rope_type": "linear"}}, ["rope_parameters", "linear", "factor", "add them"]),
    (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        ["partial_rotary_factor", "0.5", "left out"],
    ),
    ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5", "left out"]),
]


@pytest.mark.parametrize("options, named", IMPOSSIBLE, ids=lambda value: str(value)[:60])
def test_impossible_configurations_name_value_and_remedy(options: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        tiny_config(**options)
    for word in named:
        assert word in str(caught.value)


@pytest.mark.parametrize("options", [{"hidden_size": "32"}, {"use_cache": "yes"}, {"num_hidden_layers": 2.0}])
def test_values_of_the_wrong_type(options: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=next(iter(options))):
        tiny_config(**options)


def test_no_special_tokens_at_all() -> None:
    config = tiny_config(bos_token_id=None, eos_token_id=None, pad_token_id=None)
    assert NanoChatForCausalLM(config)(random_ids(1, 3)).logits.shape == (1, 3, 64)


def test_an_activation_may_be_a_function(tmp_path: Path) -> None:
    def cubed(x: torch.Tensor) -> torch.Tensor:
        return x.relu() ** 3

    model = tiny_model(hidden_act=cubed)
    ids = random_ids(1, 6)
    assert (model(ids).logits - tiny_model()(ids).logits).abs().max() > 0.1
    same = tiny_model(hidden_act=lambda x: torch.relu(x).square())
    torch.testing.assert_close(same(ids).logits, tiny_model()(ids).logits)
    assert "cubed" in repr(model.config)
    with pytest.raises(ValueError, match=r"cubed.*ACT2FN"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["relu", "gelu", "silu"])
def test_other_activations(name: str) -> None:
    ids = random_ids(1, 6)
    assert (tiny_model(hidden_act=name)(ids).logits - tiny_model()(ids).logits).abs().max() > 1e-3
