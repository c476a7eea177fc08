"""The same weights give the same logits, gradients and generations as Transformers' own NanoChat."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import pair, random_ids, their_model, tiny_model
from transformers import DynamicCache, StaticCache
from transformers.models.nanochat import NanoChatForCausalLM as TheirModel

from nanochat import NanoChatForCausalLM

HEADS = pytest.mark.parametrize("kv_heads", [4, 2, 1], ids=["MHA", "GQA", "MQA"])
CAP = pytest.mark.parametrize("cap", [15.0, None], ids=["softcap", "no softcap"])
BIAS = pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
ATTENTION = pytest.mark.parametrize("attention", ["eager", "sdpa"])

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_theta": 500.0},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 3.0, 4.0],
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "proportional": {"factor": 2.0},
}


def assert_same(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def left_padded(lengths: list[int], width: int) -> torch.Tensor:
    return torch.tensor([[0] * (width - length) + [1] * length for length in lengths])


def test_the_tiny_models_can_tell_right_from_wrong() -> None:
    logits = tiny_model()(random_ids(1, 12)).logits
    assert logits.std() > 1
    assert (tiny_model(seed=1)(random_ids(1, 12)).logits - logits).abs().max() > 1


@HEADS
@CAP
@BIAS
@ATTENTION
def test_logits(kv_heads: int, cap: float | None, bias: bool, attention: str) -> None:
    ours, theirs = pair(
        num_key_value_heads=kv_heads,
        final_logit_softcapping=cap,
        attention_bias=bias,
        attn_implementation=attention,
    )
    assert ours.config._attn_implementation == theirs.config._attn_implementation == attention
    ids = random_ids(3, 12)
    assert_same(ours(ids).logits, theirs(ids).logits)
    for mask in (left_padded([12, 7, 3], 12), left_padded([12, 7, 3], 12).flip(1)):
        seen = mask.bool()
        assert_same(ours(ids, attention_mask=mask).logits[seen], theirs(ids, attention_mask=mask).logits[seen])


@HEADS
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_logits_with_a_cache(kv_heads: int, kind: str) -> None:
    ids, mask = random_ids(2, 12), left_padded([12, 8], 12)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    results = []
    for model in pair(num_key_value_heads=kv_heads):
        cache = (
            StaticCache(config=model.config, max_cache_len=16)
            if kind == "static"
            else DynamicCache(config=model.config)
        )
        logits = []
        for start, stop in ((0, 7), (7, 8), (8, 12)):
            output = model(
                ids[:, start:stop],
                attention_mask=mask[:, :stop],
                position_ids=positions[:, start:stop],
                past_key_values=cache,
            )
            assert output.past_key_values is cache
            logits.append(output.logits)
        results.append(torch.cat(logits, dim=1))
    ours, theirs = results
    seen = mask.bool()
    assert_same(ours[seen], theirs[seen])
    whole = pair(num_key_value_heads=kv_heads)[0](ids, attention_mask=mask, position_ids=positions).logits
    assert_same(ours[seen], whole[seen])


@pytest.mark.parametrize("rope", ROPES)
def test_logits_of_every_rope_type_short_and_long(rope: str) -> None:
    ours = tiny_model(rope_parameters={"rope_type": rope} | ROPES[rope], max_position_embeddings=32)
    theirs = their_model(ours)
    plain = tiny_model(max_position_embeddings=32)
    for length in (8, 50, 8):  # within the original length, beyond it, and back
        ids = random_ids(1, length)
        assert_same(ours(ids).logits, theirs(ids).logits)
    assert (ours(random_ids(1, 50)).logits - plain(random_ids(1, 50)).logits).abs().max() > 1e-2


def test_other_theta_and_epsilon() -> None:
    ours, theirs = pair(rope_theta=50.0, rms_norm_eps=0.1)
    assert_same(ours(random_ids(1, 20)).logits, theirs(random_ids(1, 20)).logits)
    assert (ours(random_ids(1, 20)).logits - tiny_model()(random_ids(1, 20)).logits).abs().max() > 0.1


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
def test_both_ways_through_save_pretrained(tmp_path: Path, tie: bool) -> None:
    ours = tiny_model(num_key_value_heads=2, attention_bias=True, tie_word_embeddings=tie)
    theirs = their_model(ours)
    theirs.save_pretrained(tmp_path)
    back, loading = NanoChatForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values()), loading
    assert back.state_dict().keys() == ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name])
    assert torch.equal(back(random_ids(1, 9)).logits, ours(random_ids(1, 9)).logits)
    assert (back.lm_head.weight is back.model.embed_tokens.weight) == tie


@ATTENTION
def test_hidden_states_and_attentions(attention: str) -> None:
    ours, theirs = pair(num_key_value_heads=2, attn_implementation=attention)
    ids, mask = random_ids(2, 9), left_padded([9, 9], 9)
    options = {"output_hidden_states": True, "output_attentions": attention == "eager"}
    mine, their = ours(ids, attention_mask=mask, **options), theirs(ids, attention_mask=mask, **options)
    assert len(mine.hidden_states) == len(their.hidden_states) == 3
    for one, other in zip(mine.hidden_states, their.hidden_states, strict=True):
        assert_same(one, other)
    if attention == "eager":
        for one, other in zip(mine.attentions, their.attentions, strict=True):
            assert_same(one, other)


def gradients(model: Any, **inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@HEADS
@CAP
@ATTENTION
def test_loss_and_gradients(kv_heads: int, cap: float | None, attention: str) -> None:
    models = pair(
        num_key_value_heads=kv_heads,
        final_logit_softcapping=cap,
        attention_bias=True,
        attn_implementation=attention,
        pad_token_id=None,  # theirs never trains the row of the pad token
    )
    ids = random_ids(3, 10)
    labels = ids.clone()
    labels[0, :4] = -100
    inputs = {"input_ids": ids, "attention_mask": left_padded([10, 10, 10], 10), "labels": labels}
    (our_loss, ours), (their_loss, theirs) = (gradients(model, **inputs) for model in models)
    assert_same(our_loss, their_loss)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, theirs[name], atol=1e-5, rtol=1e-4, msg=name)


GENERATIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.7},
    "sample": {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9},
    "penalised": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "no cache": {"use_cache": False},
}


@pytest.mark.parametrize("how", GENERATIONS)
def test_generations(how: str) -> None:
    mask = left_padded([9, 4, 6], 9)
    ids = random_ids(3, 9) * mask + (1 - mask) * 2
    outputs = []
    for model in pair(num_key_value_heads=2, pad_token_id=2):
        torch.manual_seed(5)
        outputs.append(model.generate(ids, attention_mask=mask, max_new_tokens=20, **GENERATIONS[how]))
    ours, theirs = outputs
    assert torch.equal(ours, theirs)
    assert len(set(ours[:, 9:].flatten().tolist())) > 5
    if how in ("static cache", "no cache"):
        plain = pair(num_key_value_heads=2, pad_token_id=2)[0].generate(ids, attention_mask=mask, max_new_tokens=20)
        assert torch.equal(ours, plain)


def test_a_padded_batch_generates_what_each_prompt_alone_does() -> None:
    model = tiny_model(pad_token_id=2)
    mask = left_padded([9, 4], 9)
    ids = random_ids(2, 9) * mask + (1 - mask) * 2
    together = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    alone = model.generate(ids[1:, 5:], attention_mask=mask[1:, 5:], max_new_tokens=8, do_sample=False)
    assert torch.equal(together[1, 9:][: alone.shape[1] - 4], alone[0, 4:])


def test_bfloat16_is_no_further_from_the_truth_than_theirs() -> None:
    truth = tiny_model()
    ids = random_ids(4, 30)
    expected = truth(ids).logits
    ours = tiny_model().to(torch.bfloat16)
    theirs: TheirModel = their_model(ours)
    our_error = (ours(ids).logits - expected).pow(2).mean()
    their_error = (theirs(ids).logits - expected).pow(2).mean()
    assert our_error <= 1.05 * their_error
