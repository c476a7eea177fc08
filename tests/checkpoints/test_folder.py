"""A saved model folder is complete, whole or absent, and opens without nanochat as well."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nanochat import NanoChatConfig, NanoChatForCausalLM
from nanochat.checkpoints.folder import generation_config, load_model, save_model
from nanochat.common import UserError
from nanochat.tokenizer import NanoChatTokenizer, train_tokenizer

CONVERSATION = [
    {"role": "user", "content": "Say <|assistant_end|> and stop."},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "Why?"},
]


@pytest.fixture(scope="module")
def tokenizer() -> NanoChatTokenizer:
    return train_tokenizer(["the cat sat on the mat", "the dog sat too"], vocab_size=280)


def tiny_model(vocab_size: int) -> NanoChatForCausalLM:
    torch.manual_seed(0)
    config = NanoChatConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        max_position_embeddings=64,
    )
    return NanoChatForCausalLM(config)


def test_a_saved_folder_holds_everything_and_agrees_with_itself(tokenizer: NanoChatTokenizer, tmp_path: Path) -> None:
    model = tiny_model(len(tokenizer))
    save_model(model, tokenizer, tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    end, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (bos, end, bos)
    assert config["architectures"] == ["NanoChatForCausalLM"]
    generation = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [end, bos]
    assert model.generation_config.eos_token_id == [end, bos]  # of the model in memory too
    assert AutoTokenizer.from_pretrained(tmp_path / "model").model_max_length == model.config.max_position_embeddings
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def test_unused_rows_are_suppressed(tokenizer: NanoChatTokenizer) -> None:
    size = len(tokenizer)
    assert generation_config(tokenizer, size + 3).suppress_tokens == [size, size + 1, size + 2]
    assert generation_config(tokenizer, size).suppress_tokens is None
    assert generation_config(tokenizer).suppress_tokens is None


def test_a_folder_that_stood_there_is_replaced_whole(tokenizer: NanoChatTokenizer, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "stale.bin").touch()
    save_model(tiny_model(len(tokenizer)), tokenizer, tmp_path / "model")
    assert not (tmp_path / "model" / "stale.bin").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_save_leaves_the_old_folder(
    tokenizer: NanoChatTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(NanoChatTokenizer, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(tiny_model(len(tokenizer)), tokenizer, tmp_path / "model")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "old"]


def test_a_tokenizer_too_large_for_the_model_is_refused(tokenizer: NanoChatTokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{len(tokenizer)} tokens but the model only 100 embeddings"):
        save_model(tiny_model(100), tokenizer, tmp_path / "model")
    assert not any(tmp_path.iterdir())


STRANGER = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer))
inputs = tokenizer.apply_chat_template(json.loads(sys.argv[2]), add_generation_prompt=True, return_tensors="pt")
logits = model(**inputs).logits
output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
assert not any(name.split(".")[0] == "nanochat" for name in sys.modules)
assert type(model).__module__.startswith("transformers.models.nanochat")
print(json.dumps([inputs["input_ids"].tolist(), logits.tolist(), output.tolist()]))
"""


def test_transformers_alone_opens_the_folder_with_the_same_ids_and_answers(
    tokenizer: NanoChatTokenizer, tmp_path: Path
) -> None:
    save_model(tiny_model(len(tokenizer)), tokenizer, tmp_path / "model")
    conversation = [CONVERSATION[2]]  # control tokens in user text are safe in our class only
    stranger = subprocess.run(
        [sys.executable, "-c", STRANGER, str(tmp_path / "model"), json.dumps(conversation)],
        capture_output=True,
        text=True,
    )
    assert stranger.returncode == 0, stranger.stderr
    ids, logits, output = json.loads(stranger.stdout)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ours = AutoTokenizer.from_pretrained(tmp_path / "model")
    inputs = ours.apply_chat_template(conversation, add_generation_prompt=True, return_tensors="pt")
    assert inputs["input_ids"].tolist() == ids
    torch.testing.assert_close(model(**inputs).logits, torch.tensor(logits), atol=1e-5, rtol=0)
    assert model.generate(**inputs, max_new_tokens=8, do_sample=False).tolist() == output


def test_a_reloaded_tokenizer_gives_the_same_chat_ids(tokenizer: NanoChatTokenizer, tmp_path: Path) -> None:
    save_model(tiny_model(len(tokenizer)), tokenizer, tmp_path / "model")
    reloaded = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert isinstance(reloaded, NanoChatTokenizer)
    assert (
        reloaded.apply_chat_template(CONVERSATION)["input_ids"]
        == tokenizer.apply_chat_template(CONVERSATION)["input_ids"]
    )


def test_a_folder_without_all_weights_is_refused(tmp_path: Path, tokenizer: NanoChatTokenizer) -> None:
    model = tiny_model(len(tokenizer))
    save_model(model, tokenizer, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights: lm_head\.weight"):
        load_model(tmp_path / "model")


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no folder demo/chta"):
        load_model("demo/chta")
