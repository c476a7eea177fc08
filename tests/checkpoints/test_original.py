"""The original's checkpoints come in and go out bit for bit, and anything else is refused with its names."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from original_format import SIZES, Original, original_encoding, original_tensors
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import nanochat  # noqa: F401  (registers the classes)
from nanochat.checkpoints.original import convert_original, export_original
from nanochat.common import UserError


@pytest.fixture
def original(tmp_path: Path) -> Original:
    return Original(tmp_path / "base_checkpoints" / "d2")


QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def original_logits(tensors: dict[str, torch.Tensor], ids: torch.Tensor, sizes: dict[str, int]) -> torch.Tensor:
    """The original's forward pass from its formulas, one head and one position at a time; shares no code with ours."""
    heads, width = sizes["n_head"], sizes["n_embd"]
    D = width // heads
    group = heads // sizes["n_kv_head"]

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 2.0**-23)

    def rotate(x: torch.Tensor, position: int) -> torch.Tensor:
        out = torch.empty_like(x)
        for i in range(D // 2):
            angle = torch.tensor(position * 10000.0 ** (-2 * i / D))
            a, b = x[i], x[i + D // 2]
            out[i], out[i + D // 2] = a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin()
        return out

    x = norm(tensors["transformer.wte.weight"].float()[ids])
    T = len(ids)
    for layer in range(sizes["n_layer"]):
        weight = {
            name: tensors[f"transformer.h.{layer}.{name}.weight"].float()
            for name in ("attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        }
        h = norm(x)
        q, k, v = h @ weight["attn.c_q"].T, h @ weight["attn.c_k"].T, h @ weight["attn.c_v"].T
        mixed = torch.zeros(T, width)
        for head in range(heads):
            mine, shared = slice(head * D, (head + 1) * D), slice(head // group * D, (head // group + 1) * D)
            queries = [norm(rotate(q[t, mine], t)) for t in range(T)]
            keys = [norm(rotate(k[t, shared], t)) for t in range(T)]
            for t in range(T):
                scores = torch.stack([queries[t] @ keys[s] for s in range(t + 1)]) / D**0.5
                mixed[t, mine] = scores.softmax(0) @ v[: t + 1, shared]
        x = x + mixed @ weight["attn.c_proj"].T
        x = x + F.relu(norm(x) @ weight["mlp.c_fc"].T).square() @ weight["mlp.c_proj"].T
    return 15 * torch.tanh(norm(x) @ tensors["lm_head.weight"].float().T / 15)


def assert_same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert torch.equal(one[name], other[name]), name


def test_a_converted_model_computes_what_the_original_computes(original: Original, tmp_path: Path) -> None:
    folder = original.write()
    out = convert_original(folder, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out)
    ids = torch.randint(0, 265, (12,), generator=torch.Generator().manual_seed(3))
    expected = original_logits(original_tensors(SIZES, 265, seed=7), ids, SIZES)
    assert expected.std() > 1
    torch.testing.assert_close(model(ids[None]).logits[0], expected, atol=2e-5, rtol=0)


def test_there_and_back_is_the_same_bit_for_bit(original: Original, tmp_path: Path) -> None:
    folder = original.write(step=7)
    back = export_original(convert_original(folder, tmp_path / "out"), tmp_path / "back", step=7)
    assert_same_tensors(torch.load(back / "model_000007.pt"), torch.load(folder / "model_000007.pt"))
    assert json.loads((back / "meta_000007.json").read_text()) == {"step": 7, "model_config": SIZES}
    encoding = pickle.loads((back / "tokenizer.pkl").read_bytes())
    assert encoding.encode("Hé <|bos|>", allowed_special="all") == original_encoding().encode(
        "Hé <|bos|>", allowed_special="all"
    )
    token_bytes = torch.load(back / "token_bytes.pt")
    assert token_bytes.dtype == torch.int32
    assert token_bytes.tolist() == [1] * 256 + [0] * 9


def test_our_folder_there_and_back_is_the_same_bit_for_bit(original: Original, tmp_path: Path) -> None:
    one = convert_original(original.write(), tmp_path / "one")
    two = convert_original(export_original(one, tmp_path / "back"), tmp_path / "two")
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name


def test_bfloat16_stays_bfloat16(original: Original, tmp_path: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in original_tensors(SIZES, 265).items()}
    out = convert_original(original.write(tensors=tensors), tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.bfloat16
    back = export_original(out, tmp_path / "back")
    assert_same_tensors(torch.load(back / "model_000000.pt"), tensors)


def test_a_bfloat16_embedding_beside_float32_matrices_keeps_every_value(original: Original, tmp_path: Path) -> None:
    tensors = original_tensors(SIZES, 265)
    tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"].bfloat16()
    out = convert_original(original.write(tensors=tensors), tmp_path / "out")
    weights = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert torch.equal(weights["model.embed_tokens.weight"], tensors["transformer.wte.weight"].float())
    back = export_original(out, tmp_path / "back")
    assert_same_tensors(torch.load(back / "model_000000.pt"), tensors)


def test_a_compiled_models_prefix_is_taken_off(original: Original, tmp_path: Path) -> None:
    tensors = original_tensors(SIZES, 265)
    plain = convert_original(original.write(tensors=tensors), tmp_path / "plain")
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}
    out = convert_original(original.write(tensors=compiled), tmp_path / "out")
    assert (out / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


def test_padded_rows_survive_and_are_never_generated(original: Original, tmp_path: Path) -> None:
    tensors = original_tensors(SIZES, 320)
    tensors["lm_head.weight"][265:] *= 10  # what greedy decoding would love to say
    folder = original.write(tensors=tensors)
    out = convert_original(folder, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.vocab_size == 320
    prompt = torch.tensor([[256, 72, 105]])
    without = model.generate(prompt, max_new_tokens=12, do_sample=False, suppress_tokens=[], eos_token_id=-1)
    assert without.max() >= 265
    assert model.generate(prompt, max_new_tokens=12, do_sample=False).max() < 265
    back = export_original(out, tmp_path / "back")
    assert_same_tensors(torch.load(back / "model_000000.pt"), tensors)
    assert json.loads((back / "meta_000000.json").read_text())["model_config"]["vocab_size"] == 265


def test_the_folder_is_complete(original: Original, tmp_path: Path) -> None:
    out = convert_original(original.write(), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(out)
    names = ["bos", "user_start", "user_end", "assistant_start"]
    bos, user_start, user_end, assistant_start = tokenizer.convert_tokens_to_ids([f"<|{name}|>" for name in names])
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True)["input_ids"]
    assert ids == [bos, user_start, *b"What is the capital of France?", user_end, assistant_start]
    end = tokenizer.convert_tokens_to_ids("<|assistant_end|>")
    generation = GenerationConfig.from_pretrained(out)
    assert generation.eos_token_id == [end, bos]
    assert generation.pad_token_id == bos
    assert not generation.do_sample
    config = AutoModelForCausalLM.from_pretrained(out).config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (bos, end, bos)
    assert config.intermediate_size == 4 * 32
    assert config.max_position_embeddings == 32
    assert config.num_key_value_heads == 2


def test_the_latest_step_is_taken_unless_another_is_named(original: Original, tmp_path: Path) -> None:
    original.write(step=7)
    folder = original.write(step=1200)
    (folder / "model_000009_backup.pt").write_bytes(b"")
    original.write(step=1000000)
    for step, expected in ((None, 1000000), (7, 7), (1200, 1200)):
        out = convert_original(folder, tmp_path / f"out{step}", step=step)
        weights = load_file(out / "model.safetensors")
        assert torch.equal(weights["lm_head.weight"], original_tensors(SIZES, 265, seed=expected)["lm_head.weight"])


@pytest.mark.parametrize("place", ["tokenizer", "../../tokenizer"])
def test_the_tokenizer_is_found_where_the_original_keeps_it(original: Original, tmp_path: Path, place: str) -> None:
    folder = original.write()
    (folder / "tokenizer.pkl").unlink()
    original.write_tokenizer(folder / place)
    assert (convert_original(folder, tmp_path / "out") / "tokenizer.json").is_file()


def test_the_tokenizer_may_be_named(original: Original, tmp_path: Path) -> None:
    folder = original.write()
    (folder / "tokenizer.pkl").rename(tmp_path / "mine.pkl")
    assert (convert_original(folder, tmp_path / "out", tokenizer=tmp_path / "mine.pkl") / "tokenizer.json").is_file()


def refusal(folder: Path, out: Path, **options: object) -> str:
    """The message with which a conversion is refused; nothing may have been written, not even a temporary folder."""
    before = set(out.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        convert_original(folder, out, **options)  # type: ignore[arg-type]
    assert set(out.parent.rglob("*")) == before
    return str(caught.value)


NEWER = {
    "resid_lambdas": torch.ones(2),
    "x0_lambdas": torch.zeros(2),
    "value_embeds.1.weight": torch.zeros(265, 16),
    "transformer.h.1.attn.ve_gate.weight": torch.zeros(2, 32),
    "smear_gate.weight": torch.zeros(1, 24),
    "smear_lambda": torch.zeros(1),
    "backout_lambda": torch.zeros(1),
}


def test_a_newer_architecture_is_refused_by_name_and_era(original: Original, tmp_path: Path) -> None:
    folder = original.write(tensors=original_tensors(SIZES, 265) | NEWER)
    message = refusal(folder, tmp_path / "out")
    assert "after 11 January 2026" in message
    for name in NEWER:
        assert name in message


@pytest.mark.parametrize("name", NEWER)
def test_each_newer_tensor_alone_is_enough(original: Original, tmp_path: Path, name: str) -> None:
    folder = original.write(tensors=original_tensors(SIZES, 265) | {name: NEWER[name]})
    message = refusal(folder, tmp_path / "out")
    assert name in message
    assert "after 11 January 2026" in message


def test_a_window_pattern_is_of_the_newer_architecture(original: Original, tmp_path: Path) -> None:
    message = refusal(original.write(window_pattern="SSSL"), tmp_path / "out")
    assert "window_pattern" in message
    assert "after 11 January 2026" in message


def test_unknown_missing_and_wrongly_shaped_tensors_are_named(original: Original, tmp_path: Path) -> None:
    tensors = original_tensors(SIZES, 265)
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    tensors["transformer.h.0.attn.surprise"] = torch.zeros(1)
    message = refusal(original.write(tensors=tensors), tmp_path / "out")
    assert "Unknown tensors: transformer.h.0.attn.surprise" in message
    assert "Missing tensors: transformer.h.1.mlp.c_fc.weight" in message
    assert "from after" not in message

    tensors = original_tensors(SIZES, 265)
    tensors["transformer.h.1.mlp.c_fc.weight"] = torch.zeros(96, 32)
    message = refusal(original.write(tensors=tensors), tmp_path / "out")
    assert "transformer.h.1.mlp.c_fc.weight is (96, 32), should be (128, 32)" in message

    tensors = original_tensors(SIZES, 265)
    tensors["lm_head.weight"] = torch.tensor(1.0)
    assert "lm_head.weight is ()" in refusal(original.write(tensors=tensors), tmp_path / "out")


def test_more_layers_than_the_meta_file_says_are_refused(original: Original, tmp_path: Path) -> None:
    assert "transformer.h.1." in refusal(original.write(n_layer=1), tmp_path / "out")
    assert "transformer.h.2." in refusal(original.write(n_layer=3), tmp_path / "out")


def test_half_precision_is_refused(original: Original, tmp_path: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in original_tensors(SIZES, 265).items()}
    assert "torch.float16" in refusal(original.write(tensors=tensors), tmp_path / "out")


def test_another_models_tokenizer_is_refused(original: Original, tmp_path: Path) -> None:
    tensors = original_tensors(SIZES | {"vocab_size": 400}, 400)
    message = refusal(original.write(tensors=tensors, vocab_size=400), tmp_path / "out")
    assert "265 tokens" in message
    assert "vocab_size=400" in message


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("{", "not the JSON"),
        ("[]", "not the JSON"),
        ("{}", "no model_config"),
        ('{"model_config": 3}', "not the JSON"),
        ('{"model_config": {"n_layer": 2}}', "Missing settings: n_embd, n_head, n_kv_head, sequence_len, vocab_size"),
        (json.dumps({"model_config": SIZES | {"n_head": 0}}), "n_head must be a positive whole number, got 0"),
        (json.dumps({"model_config": SIZES | {"n_embd": "32"}}), "n_embd must be a positive whole number, got '32'"),
        (json.dumps({"model_config": SIZES | {"n_head": 3}}), "describes a model that can't be"),
    ],
)
def test_bad_meta_files(original: Original, tmp_path: Path, text: str, complaint: str) -> None:
    folder = original.write()
    (folder / "meta_000007.json").write_text(text)
    message = refusal(folder, tmp_path / "out")
    assert complaint in message
    assert "meta_000007.json" in message


def test_meta_files_that_are_no_text(original: Original, tmp_path: Path) -> None:
    folder = original.write()
    (folder / "meta_000007.json").write_bytes(b"\xff\xfe\x00")
    assert "not the JSON" in refusal(folder, tmp_path / "out")


def test_missing_files(original: Original, tmp_path: Path) -> None:
    folder = original.folder
    assert "has no model_NNNNNN.pt" in refusal(folder, tmp_path / "out")
    assert "has no model_NNNNNN.pt" in refusal(tmp_path / "nowhere", tmp_path / "out")
    original.write()
    assert "meta_000009.json is missing" in refusal(folder, tmp_path / "out", step=9)
    (folder / "tokenizer.pkl").unlink()
    message = refusal(folder, tmp_path / "out")
    assert str(folder / "tokenizer" / "tokenizer.pkl") in message
    assert str(tmp_path / "tokenizer" / "tokenizer.pkl") in message
    (folder / "meta_000007.json").unlink()
    assert "meta_000007.json is missing" in refusal(folder, tmp_path / "out")


@pytest.mark.parametrize("length", [0, 10, 5000])
def test_truncated_weights(original: Original, tmp_path: Path, length: int) -> None:
    path = original.write() / "model_000007.pt"
    path.write_bytes(path.read_bytes()[:length])
    message = refusal(original.folder, tmp_path / "out")
    assert "model_000007.pt" in message
    assert "damaged, cut short" in message


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {os.environ['BOMB']}",)


def test_code_in_a_weights_file_never_runs(original: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "ran"))
    folder = original.write(tensors=original_tensors(SIZES, 265) | {"x": Bomb()})  # type: ignore[dict-item]
    assert "holds code, which is never run" in refusal(folder, tmp_path / "out")
    (folder / "model_000007.pt").write_bytes(pickle.dumps(Bomb()))
    refusal(folder, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[1, 2], {"step": 3}, torch.zeros(2)])
def test_a_weights_file_without_a_state_dict(original: Original, tmp_path: Path, content: object) -> None:
    folder = original.write()
    torch.save(content, folder / "model_000007.pt")
    assert "holds no state dict" in refusal(folder, tmp_path / "out")


def test_nothing_is_overwritten(original: Original, tmp_path: Path) -> None:
    folder = original.write()
    (tmp_path / "out").mkdir()
    out = convert_original(folder, tmp_path / "out")  # an empty folder may be there
    for write, source in ((convert_original, folder), (export_original, out)):
        with pytest.raises(UserError, match="exists already"):
            write(source, out)


def change_config(folder: Path, **changes: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"attention_bias": True}, "attention_bias=True"),
        ({"final_logit_softcapping": None}, "final_logit_softcapping=None"),
        ({"hidden_act": "relu"}, "hidden_act=relu"),
        ({"intermediate_size": 100}, "intermediate_size=100"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}}, "rope_parameters="),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True"),
        ({"vocab_size": 400}, "400 embeddings for 265 tokens"),
        ({"model_type": "llama"}, "llama model"),
        ({"num_hidden_layers": 3}, "lacks weights: model.layers.2."),
    ],
)
def test_what_the_original_cannot_express_is_not_exported(
    original: Original, tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    out = change_config(convert_original(original.write(), tmp_path / "out"), **changes)
    with pytest.raises(UserError) as caught:
        export_original(out, tmp_path / "back")
    assert named in str(caught.value)
    assert not (tmp_path / "back").exists()


def test_only_a_model_folder_is_exported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        export_original(tmp_path, tmp_path / "back")
