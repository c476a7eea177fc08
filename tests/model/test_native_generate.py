"""`generate` by the native decoder: taken where it means the same, and giving the same; else left alone."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from native_models import native_model, needs_native
from tiny_models import random_ids, their_model
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicCache
from transformers.generation.streamers import BaseStreamer

from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.native.decoder import NativeDecoder

pytestmark = needs_native

GREEDY = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": 1, "pad_token_id": 0}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every step that the native decoder does."""
    counts: list[int] = []
    step = NativeDecoder.step

    def counted(self: NativeDecoder, tokens: Any, *rest: Any) -> Tensor:
        counts.append(len(tokens))
        return step(self, tokens, *rest)

    monkeypatch.setattr(NativeDecoder, "step", counted)
    return counts


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs `generate` without the native decoder."""

    def generate(model: NanoChatForCausalLM, *arguments: Any, **options: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("nanochat.model.native.decoder_library", lambda: None)
            return model.generate(*arguments, **options)

    yield generate


def padded(lengths: list[int]) -> dict[str, Tensor]:
    """A left-padded batch."""
    longest = max(lengths)
    ids = random_ids(len(lengths), longest)
    mask = torch.tensor([[0] * (longest - length) + [1] * length for length in lengths])
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_greedy_tokens_are_transformers_own(kv_heads: int, steps: list[int]) -> None:
    model = native_model(num_key_value_heads=kv_heads)
    theirs = their_model(model)
    for seed in range(10):
        ids = random_ids(3, 1 + 7 * seed, seed=seed + 2)
        assert torch.equal(model.generate(ids, **GREEDY), theirs.generate(ids, **GREEDY))
    assert len(steps) > 50
    assert max(steps[1:20]) <= 24


def test_padded_batches(steps: list[int]) -> None:
    model = native_model()
    theirs = their_model(model)
    for lengths in ([5, 9, 1], [33, 2, 17, 40], [7, 7]):
        batch = padded(lengths)
        assert torch.equal(model.generate(**batch, **GREEDY), theirs.generate(**batch, **GREEDY))
    assert steps[0] == 15  # padding is not computed


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.8, "top_k": 10},
        {"do_sample": True, "top_p": 0.9, "num_return_sequences": 3},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 10},
        {"bad_words_ids": [[5], [6, 7]], "suppress_tokens": [9]},
        {"prompt_lookup_num_tokens": 3},
        {"num_beams": 3},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
        {"output_attentions": True, "return_dict_in_generate": True},
        {"max_time": 60.0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_way_of_generating_gives_what_it_gave(options: dict[str, Any], plain: Any) -> None:
    model = native_model(attn_implementation="eager")
    ids = random_ids(1 if "prompt_lookup_num_tokens" in options else 2, 30)
    torch.manual_seed(5)
    seen = model.generate(ids, **(GREEDY | options))
    torch.manual_seed(5)
    expected = plain(model, ids, **(GREEDY | options))
    if not isinstance(seen, Tensor):
        assert seen.keys() == expected.keys()
        seen, expected = seen.sequences, expected.sequences
    assert torch.equal(seen, expected)


def test_streamers_and_stopping_criteria_are_asked(plain: Any) -> None:
    class Streamer(BaseStreamer):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def put(self, value: Tensor) -> None:
            self.seen += value.flatten().tolist()

        def end(self) -> None:
            self.seen.append(-1)

    class Long(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= 13)

    model, ids, heard = native_model(), random_ids(1, 8), []
    for generate in (model.generate, lambda *a, **k: plain(model, *a, **k)):
        streamer = Streamer()
        out = generate(ids, streamer=streamer, stopping_criteria=StoppingCriteriaList([Long()]), **GREEDY)
        assert out.shape[1] <= 13
        assert streamer.seen == [*out[0].tolist(), -1]
        heard.append(streamer.seen)
    assert heard[0] == heard[1]


def test_new_weights_are_used_at_once(steps: list[int], plain: Any) -> None:
    model, ids = native_model(), random_ids(2, 10)
    before = model.generate(ids, **GREEDY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.flip(0))
    after = model.generate(ids, **GREEDY)
    assert torch.equal(after, plain(model, ids, **GREEDY))
    assert not torch.equal(before, after)
    model.config.num_hidden_layers = 1
    assert torch.equal(model.generate(ids, **GREEDY), plain(model, ids, **GREEDY))


# Where it means something else, the model itself computes


def test_a_cache_that_is_given_is_filled(steps: list[int]) -> None:
    model, ids = native_model(), random_ids(1, 10)
    cache = DynamicCache(config=model.config)
    first = model.generate(ids, past_key_values=cache, **GREEDY)
    assert cache.get_seq_length() == first.shape[1] - 1
    longer = torch.cat([first, random_ids(1, 5, seed=9)], dim=1)
    assert torch.equal(model.generate(longer, past_key_values=cache, **GREEDY), model.generate(longer, **GREEDY))
    logits = model(first[:, -1:], past_key_values=model(first[:, :-1], use_cache=True).past_key_values).logits
    torch.testing.assert_close(logits[0, 0], model(first).logits[0, -1], atol=1e-4, rtol=0)


def test_hooks_are_called(steps: list[int]) -> None:
    model, ids, calls = native_model(), random_ids(1, 10), []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    model.generate(ids, **GREEDY)
    assert calls
    assert not steps
    handle.remove()
    model.generate(ids, **GREEDY)
    assert steps


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.q_proj", "lm_head"])
def test_changed_modules_compute(name: str, steps: list[int]) -> None:
    class Adapted(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    model, ids = native_model(), random_ids(1, 10)
    before = model.generate(ids, **GREEDY)
    steps.clear()
    model.get_submodule(name).__class__ = Adapted
    assert not torch.equal(model.generate(ids, **GREEDY), before)
    assert not steps


def test_embeddings_right_padding_and_training_are_the_models_own(steps: list[int]) -> None:
    model, ids = native_model(), random_ids(2, 10)
    model.generate(inputs_embeds=model.get_input_embeddings()(ids), **GREEDY)
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    model.generate(ids, attention_mask=mask, **GREEDY)
    model.train().generate(ids, **GREEDY)
    model.eval().generate(ids, num_beams=2, **GREEDY)
    model.generate(ids, return_dict_in_generate=True, **GREEDY)
    assert not steps


def test_an_assistants_drafts_are_checked_by_the_model(plain: Any) -> None:
    model, assistant = native_model(), native_model(seed=1, num_hidden_layers=1)
    ids = random_ids(1, 12)
    options = GREEDY | {"assistant_model": assistant}
    assert torch.equal(model.generate(ids, **options), plain(model, ids, **options))
    assert torch.equal(model.generate(ids, **options), model.generate(ids, **GREEDY))


def test_bf16_is_computed_from_bf16_weights_in_fp32(steps: list[int]) -> None:
    model, ids = native_model(), random_ids(4, 12)
    model = model.to(torch.bfloat16)
    seen = model.generate(ids, **GREEDY)
    assert steps
    exact = model.float().generate(ids, **GREEDY)
    same = (seen[:, 12:16] == exact[:, 12:16]).float().mean()  # bf16 keys and values may tip a close choice
    assert same > 0.8


def test_gradients_and_modes_are_left_as_they_were() -> None:
    model, ids = native_model(), random_ids(1, 5)
    model.generate(ids, **GREEDY)
    loss = model(ids, labels=ids).loss
    loss.backward()
    assert model.lm_head.weight.grad is not None
    model.generate(ids, **GREEDY)
    assert torch.is_grad_enabled()
