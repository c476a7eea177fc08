"""Every argument and return value of the forward passes, and precision where others lose it."""

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import VOCAB, random_ids, tiny_config, tiny_model
from torch import Tensor
from transformers import AttentionInterface, DynamicCache, StaticCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.nanochat import modeling_nanochat as theirs

from nanochat import NanoChatForCausalLM, NanoChatModel
from nanochat.model import modeling as ours
from nanochat.model.modeling import NanoChatRMSNorm


def assert_same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


# Inputs


def test_inputs_embeds_instead_of_ids() -> None:
    model, ids = tiny_model(), random_ids(2, 7)
    assert_same(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, model(ids).logits)
    for inputs in ({}, {"input_ids": ids, "inputs_embeds": model.get_input_embeddings()(ids)}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**inputs)


def test_generation_from_inputs_embeds() -> None:
    model, ids = tiny_model(), random_ids(1, 7)
    embeds = model.get_input_embeddings()(ids)
    from_embeds = model.generate(inputs_embeds=embeds, max_new_tokens=6, do_sample=False)
    assert torch.equal(from_embeds, model.generate(ids, max_new_tokens=6, do_sample=False)[:, 7:])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("options", [{}, {"use_cache": True}, {"use_cache": False}], ids=str)
def test_packed_positions_equal_separate_sequences(attention: str, options: dict[str, bool]) -> None:
    model = tiny_model(attn_implementation=attention)
    one, two = random_ids(1, 5), random_ids(1, 8, seed=2)
    positions = torch.tensor([[*range(5), *range(8)]])
    packed = model(torch.cat((one, two), dim=1), position_ids=positions, **options).logits
    assert_same(packed[:, :5], model(one).logits)
    assert_same(packed[:, 5:], model(two).logits)


def test_cache_position_gives_the_positions() -> None:
    model, ids = tiny_model(), random_ids(1, 9)
    whole = model(ids).logits
    for model_or_base in (model, model.model):
        cache = DynamicCache(config=model.config)
        model_or_base(ids[:, :6], past_key_values=cache, cache_position=torch.arange(6))
        output = model_or_base(ids[:, 6:], past_key_values=cache, cache_position=torch.arange(6, 9))
        logits = (
            output.logits if model_or_base is model else model.lm_head(output.last_hidden_state).div(15).tanh() * 15
        )
        assert_same(logits, whole[:, 6:])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_static_cache_step_by_step(attention: str) -> None:
    model, ids = tiny_model(num_key_value_heads=2, attn_implementation=attention), random_ids(2, 9)
    cache = StaticCache(config=model.config, max_cache_len=12)
    steps = [model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(9)]
    assert_same(torch.cat(steps, dim=1), model(ids).logits)


def test_a_ready_made_4d_mask() -> None:
    model, ids = tiny_model(), random_ids(1, 6)
    allowed = torch.ones(6, 6).tril()[None, None]
    mask = (1 - allowed) * torch.finfo(torch.float32).min
    assert_same(model(ids, attention_mask=mask).logits, model(ids).logits)
    blind = mask.clone()
    blind[..., 1:, 0] = torch.finfo(torch.float32).min
    assert (model(ids, attention_mask=blind).logits - model(ids).logits)[:, 1:].abs().max() > 0.01


def test_the_future_is_not_seen() -> None:
    model, ids = tiny_model(), random_ids(1, 8)
    changed = ids.clone()
    changed[0, 5:] = (changed[0, 5:] + 1) % VOCAB
    assert torch.equal(model(changed).logits[:, :5], model(ids).logits[:, :5])


# Outputs


def test_kinds_and_shapes_of_outputs() -> None:
    model, ids = tiny_model(num_key_value_heads=2, attn_implementation="eager"), random_ids(2, 7)
    output = model(ids, output_hidden_states=True, output_attentions=True)
    assert isinstance(output, CausalLMOutputWithPast)
    assert output.loss is None
    assert output.logits.shape == (2, 7, VOCAB)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 7, 32)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, 7, 7)] * 2
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 7))
        assert weights.triu(1).abs().max() == 0
    assert output.past_key_values.layers[1].keys.shape == (2, 2, 7, 8)
    base = model.model(ids, output_hidden_states=True)
    assert isinstance(base, BaseModelOutputWithPast)
    assert torch.equal(base.last_hidden_state, base.hidden_states[-1])
    assert torch.equal(base.hidden_states[-1], output.hidden_states[-1])
    plain = model(ids)
    assert plain.hidden_states is None
    assert plain.attentions is None


@pytest.mark.parametrize("how", ["argument", "config"])
def test_tuples_instead_of_dictionaries(how: str) -> None:
    model, ids = tiny_model(), random_ids(1, 5)
    expected = model(ids, labels=ids)
    if how == "config":
        model.config.return_dict = False
    arguments = {"return_dict": False} if how == "argument" else {}
    loss, logits, cache = model(ids, labels=ids, **arguments)
    assert torch.equal(loss, expected.loss)
    assert torch.equal(logits, expected.logits)
    assert cache.get_seq_length() == 5
    hidden, cache = model.model(ids, **arguments)
    assert hidden.shape == (1, 5, 32)


def test_use_cache_by_argument_and_config() -> None:
    model, ids = tiny_model(), random_ids(1, 5)
    assert isinstance(model(ids).past_key_values, DynamicCache)
    assert model(ids, use_cache=False).past_key_values is None
    model.config.use_cache = False
    assert model(ids).past_key_values is None
    assert model(ids, use_cache=True).past_key_values.get_seq_length() == 5
    assert model.model(ids).past_key_values is None


def test_outputs_asked_for_in_the_config() -> None:
    model = tiny_model(output_hidden_states=True)
    assert len(model(random_ids(1, 3)).hidden_states) == 3


@pytest.mark.parametrize("kept", [1, 3, 7, torch.tensor([0, 4]), torch.tensor([-1])], ids=str)
def test_logits_to_keep(kept: int | Tensor) -> None:
    model, ids = tiny_model(), random_ids(2, 7)
    everything = model(ids).logits
    expected = everything[:, -kept:] if isinstance(kept, int) else everything[:, kept]
    assert_same(model(ids, logits_to_keep=kept).logits, expected)
    assert_same(model(ids, logits_to_keep=0).logits, everything)


# Loss


def reference_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in fp64, one counted token after another."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row, targets in zip(logits.double(), labels, strict=True):
        for t in range(len(targets) - 1):
            if targets[t + 1] != -100:
                total = total - row[t].log_softmax(-1)[targets[t + 1]]
                count += 1
    return total / max(count, 1)


def test_loss_shifts_once_and_skips_ignored_labels() -> None:
    model, ids = tiny_model(), random_ids(2, 7)
    labels = ids.clone()
    labels[0, :4] = -100
    labels[1, 3] = -100
    output = model(ids, labels=labels)
    torch.testing.assert_close(output.loss.double(), reference_loss(output.logits, labels), atol=1e-6, rtol=1e-6)
    assert output.loss.shape == ()


def test_a_batch_without_any_label_costs_nothing() -> None:
    model, ids = tiny_model(), random_ids(2, 7)
    loss = model(ids, labels=torch.full_like(ids, -100)).loss
    assert loss == 0
    loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("count", [5, torch.tensor(5), torch.tensor(5.0)], ids=str)
def test_num_items_in_batch_is_the_divisor(count: int | Tensor) -> None:
    model, ids = tiny_model(), random_ids(2, 7)
    mean = model(ids, labels=ids).loss
    assert_same(model(ids, labels=ids, num_items_in_batch=count).loss, mean * 12 / 5)


def test_split_batches_add_up_to_the_whole() -> None:
    model, ids = tiny_model(), random_ids(4, 7)
    labels = ids.clone()
    labels[0] = -100
    labels[1, :5] = -100
    whole = model(ids, labels=labels).loss
    count = (labels[:, 1:] != -100).sum()
    parts = [model(ids[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=count).loss for i in range(4)]
    assert_same(torch.stack(parts).sum(), whole)


def test_shift_labels_are_taken_as_they_are() -> None:
    model, ids = tiny_model(), random_ids(2, 7)
    shifted = F.pad(ids, (0, 1), value=-100)[:, 1:]
    expected = model(ids, labels=ids).loss
    assert torch.equal(model(ids, shift_labels=shifted).loss, expected)
    assert torch.equal(model(ids, labels=ids, shift_labels=shifted).loss, expected)


# Precision


def test_softcap_and_loss_of_a_bfloat16_model_are_in_fp32() -> None:
    model, ids = tiny_model(initializer_range=1.5).to(torch.bfloat16), random_ids(4, 30)
    output = model(ids, labels=ids)
    assert output.logits.dtype == output.loss.dtype == torch.float32
    uncapped = model.lm_head(model.model(ids).last_hidden_state)
    assert uncapped.dtype == torch.bfloat16
    truth = 15 * torch.tanh(uncapped.double() / 15)
    assert (truth.abs() > 14).any()
    torch.testing.assert_close(output.logits.double(), truth, atol=2e-6, rtol=0)
    in_bfloat16 = 15 * torch.tanh(uncapped / 15)
    assert (in_bfloat16.double() - truth).abs().max() > 1e-2  # what is avoided
    torch.testing.assert_close(output.loss.double(), reference_loss(truth, ids), atol=1e-5, rtol=0)


def test_norms_are_computed_in_fp32() -> None:
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16) * 100
    truth = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.equal(NanoChatRMSNorm(1e-6)(x), truth.to(torch.bfloat16))


@pytest.mark.parametrize("convert", ["to(dtype)", "bfloat16()", "from_pretrained", "from_config", "half and back"])
def test_rotary_angles_stay_exact_in_any_dtype(convert: str, tmp_path: Path) -> None:
    exact = tiny_model().model.rotary_emb
    model: Any = tiny_model()
    if convert == "to(dtype)":
        model = model.to(torch.bfloat16)
    elif convert == "bfloat16()":
        model = model.bfloat16()
    elif convert == "from_pretrained":
        model.save_pretrained(tmp_path)
        model = NanoChatForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    elif convert == "from_config":
        model = NanoChatForCausalLM._from_config(tiny_config(), dtype=torch.bfloat16)
    else:
        model = model.half().float()
    x, positions = torch.zeros(1), torch.arange(2000)[None]
    for table, expected in zip(model.model.rotary_emb(x, positions), exact(x, positions), strict=True):
        assert torch.equal(table, expected)


def test_float16_is_refused_where_it_would_overflow() -> None:
    model = tiny_model().half()
    with pytest.raises(ValueError, match=r"float16.*relu².*65,504.*bfloat16 or torch\.float32"):
        model(random_ids(1, 3))
    with pytest.raises(ValueError, match="float16"), torch.autocast("cpu", dtype=torch.float16):
        tiny_model()(random_ids(1, 3))
    assert tiny_model(hidden_act="gelu").half()(random_ids(1, 3)).logits.isfinite().all()


def test_autocast_to_bfloat16() -> None:
    model, ids = tiny_model(), random_ids(2, 7)
    expected = model(ids).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(ids, labels=ids)
    assert output.logits.dtype == output.loss.dtype == torch.float32
    assert (output.logits - expected).abs().max() < 1


# Training


@pytest.mark.parametrize("pad", [None, 1, 63])
def test_every_embedding_row_starts_alive_and_learns(pad: int | None) -> None:
    model = tiny_model(pad_token_id=pad)
    rows = model.get_input_embeddings().weight
    assert (rows.abs().sum(-1) > 0).all()
    ids = torch.arange(VOCAB)[None]
    model(ids, labels=ids).loss.backward()
    assert (rows.grad[:-1].abs().sum(-1) > 0).all()
    ids = ids.flip(1)
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    assert (rows.grad[1:].abs().sum(-1) > 0).all()


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = NanoChatForCausalLM(tiny_config(hidden_size=128, num_hidden_layers=8, initializer_range=0.05))
    for name, parameter in model.named_parameters():
        expected = 0.05 / 4 if "o_proj" in name else 0.05
        assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
    biased = NanoChatForCausalLM(tiny_config(attention_bias=True))
    assert all(p.abs().max() == 0 for name, p in biased.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    model, ids = tiny_model().train(), random_ids(2, 7)
    model(ids, labels=ids).loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    calls: list[int] = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model(ids, labels=ids).loss.backward()
    assert len(calls) == 2  # the layer ran again for the backward pass
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_dropout_only_while_training(attention: str) -> None:
    model, ids = tiny_model(attention_dropout=0.5, attn_implementation=attention), random_ids(1, 9)
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)


# Attention through the interface


def test_a_registered_attention_function_gets_everything_it_needs() -> None:
    seen: list[dict[str, Any]] = []

    def probe(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> tuple[Tensor, None]:
        seen.append(kwargs | {"shapes": (query.shape, key.shape, value.shape), "layer": module.layer_idx})
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **kwargs)

    AttentionInterface.register("probe", probe)
    model, ids = tiny_model(num_key_value_heads=2), random_ids(2, 7)
    expected = model(ids).logits
    model.set_attn_implementation("probe")
    assert_same(model(ids, engines_own_argument="kept").logits, expected)
    assert [call["layer"] for call in seen] == [0, 1]
    for call in seen:
        assert call["engines_own_argument"] == "kept"
        assert call["scaling"] == 8**-0.5
        assert call["dropout"] == 0.0
        assert call["position_ids"].tolist() == [[*range(7)]]
        assert call["shapes"] == ((2, 4, 7, 8), (2, 2, 7, 8), (2, 2, 7, 8))


@pytest.mark.slow
@torch.no_grad()
def test_flex_attention_agrees() -> None:
    model, ids = tiny_model(num_key_value_heads=2, hidden_size=64), random_ids(2, 16)
    expected = model(ids).logits
    model.set_attn_implementation("flex_attention")
    try:
        logits = model(ids).logits
    except Exception as error:  # whatever a machine without a working compiler says
        pytest.skip(f"flex attention does not run here: {error!r:.200}")
    assert_same(logits, expected)


@pytest.mark.parametrize("name", ["sdpa", "flash_attn", "flex_attn", "attention_backend"])
def test_what_the_model_says_it_supports(name: str) -> None:
    assert getattr(NanoChatModel, f"_supports_{name}") is True


def test_flash_attention_is_refused_for_want_of_the_package_only() -> None:
    if importlib.util.find_spec("flash_attn"):
        pytest.skip("flash_attn is installed")
    with pytest.raises(ImportError, match=r"(?i)flash"):
        NanoChatForCausalLM._from_config(tiny_config(), attn_implementation="flash_attention_2")


def test_rotary_is_out_of_reach_of_kernel_substitution() -> None:
    """A standard kernel turns by plus theta: theirs may be replaced by one, ours offers nothing to replace."""
    assert "use_kernel" in inspect.getsource(theirs)
    assert "use_kernel" not in inspect.getsource(ours)
