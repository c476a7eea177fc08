"""Chat tuning as a stage."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from toy_data import pretrain_options, sft_options
from transformers import AutoModelForCausalLM, AutoTokenizer

from nanochat.common import UserError
from nanochat.inference.engine import Engine
from nanochat.inference.sampling import SamplingParams
from nanochat.stages.options import SftOptions
from nanochat.stages.run import Run
from nanochat.stages.sft import sft
from nanochat.training.loop import Interrupted
from nanochat.training.run_log import read_metrics


def same(one, other):
    one, other = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def untuned(finished):
    """The run with its base model, and no chat model yet."""
    run = finished / "run"
    shutil.rmtree(run / "chat")
    recipe = json.loads((run / "recipe.json").read_text())
    del recipe["chat"]
    (run / "recipe.json").write_text(json.dumps(recipe))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if '"base"' in line))
    return finished


def test_the_chat_model_differs_from_the_base_and_learnt(finished):
    run = finished / "run"
    assert AutoModelForCausalLM.from_pretrained(run / "chat").config.num_hidden_layers == 1
    assert AutoTokenizer.from_pretrained(run / "chat").chat_template
    assert not same(run / "base", run / "chat")
    records = [record for record in read_metrics(run / "metrics.jsonl") if record["stage"] == "chat"]
    assert records[-1]["loss"] < records[0]["loss"]


def test_some_epochs_teach_the_answers(untuned):
    sft(sft_options(untuned, epochs=8, lr_fraction=1.0))
    engine = Engine.from_pretrained(untuned / "run" / "chat")
    question = "What does the fox in the wood do? It sings, no?"
    [result] = engine.generate([[{"role": "user", "content": question}]], SamplingParams(max_new_tokens=30))
    assert result.text.startswith("It ") and result.finish_reason == "stop", result.text


@pytest.mark.parametrize("stop", [0, 3])
def test_stopped_and_resumed_is_the_same_run(untuned, tmp_path, interrupt_at, stop):
    whole = shutil.copytree(untuned / "run", tmp_path / "whole")
    sft(dataclasses.replace(sft_options(untuned, epochs=2), run=whole))
    undo = interrupt_at("chat", stop)
    with pytest.raises(Interrupted):
        sft(sft_options(untuned, epochs=2))
    undo()
    sft(SftOptions(run=untuned / "run", resume=True))
    assert same(untuned / "run" / "chat", whole / "chat")
    one, other = (read_metrics(folder / "metrics.jsonl") for folder in (untuned / "run", whole))
    assert [(r["stage"], r["step"], r["loss"]) for r in one] == [(r["stage"], r["step"], r["loss"]) for r in other]


def test_another_model_than_the_runs_own(finished, tmp_path):
    options = dataclasses.replace(
        sft_options(finished), model=str(finished / "run" / "base"), run=tmp_path / "elsewhere"
    )
    sft(options)
    assert same(tmp_path / "elsewhere" / "chat", finished / "run" / "chat")
    assert Run(tmp_path / "elsewhere").load_recipe("chat")[1]["model"] == str(finished / "run" / "base")


def test_a_model_in_half_precision_is_tuned_in_full(finished, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(finished / "run" / "base", half)
    AutoModelForCausalLM.from_pretrained(half, dtype=torch.bfloat16).save_pretrained(half)
    sft(dataclasses.replace(sft_options(finished), model=str(half), run=tmp_path / "run"))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "chat").dtype == torch.float32


def test_a_tied_model_with_grouped_keys_is_tuned_too(finished, tmp_path):
    from nanochat.checkpoints.folder import save_model
    from nanochat.model.configuration import NanoChatConfig
    from nanochat.model.modeling import NanoChatForCausalLM
    from nanochat.tokenizer import NanoChatTokenizer

    tokenizer = NanoChatTokenizer.from_pretrained(finished / "run" / "tokenizer")
    config = NanoChatConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attention_bias=True, tie_word_embeddings=True, max_position_embeddings=64,
    )  # fmt: skip
    save_model(NanoChatForCausalLM(config), tokenizer, tmp_path / "model")
    sft(dataclasses.replace(sft_options(finished), model=str(tmp_path / "model"), run=tmp_path / "run"))
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "chat")
    assert tuned.lm_head.weight is tuned.model.embed_tokens.weight
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert records[-1]["loss"] < records[0]["loss"]


def test_without_a_base_model_the_remedy_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no model in.*nanochat pretrain --run"):
        sft(sft_options(tmp_path))


def test_of_the_primer_as_many_tokens_as_asked_for(untuned):
    sft(SftOptions(run=untuned / "run", tokens=3000, batch_tokens=640, dtype="float32"))
    recipe, origin = Run(untuned / "run").load_recipe("chat")
    assert origin["tokens"] == 3000 and 3000 <= recipe.tokens < 2 * 3000


def test_epochs_are_counted_in_rows(untuned, tmp_path):
    steps = []
    for epochs in (1, 3):
        run = shutil.copytree(untuned / "run", tmp_path / f"epochs-{epochs}")
        sft(dataclasses.replace(sft_options(untuned, epochs=epochs), run=run))
        steps.append(Run(run).load_recipe("chat")[0].tokens)
    assert steps[1] == 3 * steps[0]


def test_only_the_assistants_words_are_trained_on(untuned, tmp_path):
    """Another user's words with the same answers: the loss counts the same number of targets."""
    sft(sft_options(untuned))
    meta = json.loads((untuned / "run" / "data" / "chat-train" / "meta.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(untuned / "run" / "base")
    lines = [json.loads(line)["messages"] for line in (untuned / "chats.jsonl").read_text().splitlines()]
    answers = [len(tokenizer.encode(chat[1]["content"], add_special_tokens=False)) + 1 for chat in lines]
    mean = sum(answers) / len(answers)
    assert meta["trained_tokens"] / meta["documents"] == pytest.approx(mean, rel=0.02)
    assert meta["trained_tokens"] < meta["tokens"] / 2


def test_tuning_does_not_touch_the_base(untuned):
    before = (untuned / "run" / "base" / "model.safetensors").read_bytes()
    sft(sft_options(untuned))
    assert (untuned / "run" / "base" / "model.safetensors").read_bytes() == before


def test_conversations_too_long_for_the_model_are_cut_with_a_word(untuned, capsys):
    chats = untuned / "long.jsonl"
    turn = [{"role": "user", "content": "And now?"}, {"role": "assistant", "content": "It waits."}]
    first = [{"role": "user", "content": "What does the owl do? " * 20}, {"role": "assistant", "content": "It waits."}]
    lines = (
        [turn * length for length in (1, 30)]
        + [first]
        + [[{**turn[0], "content": f"{n}?"}, turn[1]] for n in range(40)]
    )
    chats.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in lines))
    sft(dataclasses.replace(sft_options(untuned), data=str(chats)))
    assert "dropped and" in capsys.readouterr().out


def test_pretrain_options_and_sft_options_agree_on_where(tmp_path):
    assert pretrain_options(tmp_path).run == sft_options(tmp_path).run == tmp_path / "run"
