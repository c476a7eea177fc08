"""Which models the native decoder can run."""

from typing import Any

import pytest
import torch
from native_models import native_model, needs_native
from tiny_models import tiny_model

from nanochat.model.native import native_obstacle, packed_weights, weights_state
from nanochat.native.packing import FORMATS


@needs_native
@pytest.mark.parametrize(
    ("changes", "formats", "reason"),
    [
        ({}, FORMATS, None),
        ({"intermediate_size": 80}, ["fp32", "bf16"], None),
        ({"intermediate_size": 80}, ["int8", "int4"], "intermediate_size is 80, not a multiple of 32"),
        ({"hidden_size": 96}, FORMATS, "the head size is 24, not a multiple of 16"),
        ({"hidden_size": 32}, FORMATS, "the head size is 8"),
        ({"hidden_act": "silu"}, FORMATS, "hidden_act is silu, not relu2"),
        ({"attention_bias": True}, FORMATS, "attention biases"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            FORMATS,
            "the rotary embedding's type is dynamic",
        ),
    ],
)
def test_what_stands_in_the_way(changes: dict[str, Any], formats: list[str], reason: str | None) -> None:
    if "rope_parameters" in changes:
        changes = {"rope_parameters": {"rope_theta": 10_000.0, **changes["rope_parameters"]}}
    model = native_model(**changes)
    for format in formats:
        obstacle = native_obstacle(model, format)
        assert obstacle == reason or (reason is not None and obstacle is not None and reason in obstacle)


def test_no_compiler_and_no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "on meta" in (native_obstacle(native_model().to("meta")) or "")
    monkeypatch.setattr("nanochat.model.native.decoder_library", lambda: None)
    assert "NANOCHAT_NATIVE=0" in (native_obstacle(native_model()) or "")


def test_hooks_adapters_and_replaced_modules_are_obstacles() -> None:
    model = native_model()
    handle = model.model.norm.register_forward_pre_hook(lambda *_: None)
    assert native_obstacle(model) == "model.norm has a hook"
    handle.remove()
    model.lm_head = torch.nn.Sequential(model.lm_head)  # type: ignore[assignment]
    assert native_obstacle(model) == "lm_head is a Sequential"
    model.lm_head = torch.nn.Bilinear(1, 1, 1)  # type: ignore[assignment]
    assert native_obstacle(model) == "lm_head is a Bilinear"
    other = native_model()
    other.model.layers[0].mlp.forward = lambda x: x  # type: ignore[method-assign]
    assert native_obstacle(other) == "model.layers.0.mlp has a hook"


def test_matrices_come_layer_by_layer_and_only_of_layers_that_are_used() -> None:
    model = native_model(num_hidden_layers=3)
    assert len(packed_weights(model, "bf16")) == 3 * 4 + 1
    model.config.num_hidden_layers = 2
    assert len(packed_weights(model, "bf16")) == 2 * 4 + 1


def test_changes_of_weights_are_seen() -> None:
    model = tiny_model()
    before = weights_state(model)
    assert weights_state(model) == before
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    changed = weights_state(model)
    assert changed != before
    model.lm_head.weight.data = model.lm_head.weight.data.clone()
    assert weights_state(model) != changed
