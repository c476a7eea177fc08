from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_model import ASSISTANT, BOS, CALL, END, FORGED, TOKENIZER, USER, USER_END, ScriptedModel, ids
from small_models import plain_generate, random_model, random_prompts, run

from nanochat.checkpoints.folder import save_model
from nanochat.common import UserError
from nanochat.inference import Engine, Result, SamplingParams, Token, join_deltas, scheduler

# Against plain `generate`


def test_many_prompts_run_in_several_batches_and_come_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "MOST_RUNNING", 4)
    model = random_model()
    prompts = random_prompts(11, longest=20, seed=1)
    assert run(Engine(model, TOKENIZER), prompts, SamplingParams(max_new_tokens=5)) == plain_generate(model, prompts, 5)


def test_finished_rows_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "MOST_DRAFTING", 0)
    scripts = {(BOS, 1): [65, END], (BOS, 2, 2): [66] * 5 + [END], (BOS, 3): [67] * 3 + [END]}
    model = ScriptedModel(scripts)
    results = Engine(model, TOKENIZER).generate([list(prompt) for prompt in scripts])
    assert [result.text for result in results] == ["A", "BBBBB", "CCC"]
    assert model.batch_sizes == [1, 1, 1, 3, 2, 2, 1, 1]  # prompts one by one, then a row for each answer


def test_bf16_and_padded_vocabularies_run() -> None:
    model = random_model(vocab_size=320).to(torch.bfloat16)
    params = SamplingParams(max_new_tokens=40, temperature=5.0, seed=0)
    for result in Engine(model, TOKENIZER).generate(random_prompts(6, longest=9), params):
        assert all(token < len(TOKENIZER) for token in result.token_ids)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_runs_on_the_models_device() -> None:
    model = random_model()
    prompts, params = random_prompts(6, longest=20), SamplingParams(max_new_tokens=20)
    on_cpu = Engine(model, TOKENIZER).generate(prompts, params)
    on_gpu = Engine(model.to("cuda"), TOKENIZER).generate(prompts, params)
    assert [result.token_ids[:5] for result in on_cpu] == [result.token_ids[:5] for result in on_gpu]


# Ends


def test_stop_tokens_end_the_answer_and_are_not_in_the_text() -> None:
    talker = Engine(ScriptedModel({(BOS, 1): [65, 66, END, 67]}), TOKENIZER)
    tokens = [Token(id) for id in (65, 66, END)]
    expected = Result([65, 66, END], "AB", [{"type": "text", "text": "AB"}], "stop", tokens, 2, 0)
    assert talker.generate([[BOS, 1]]) == [expected]
    assert talker.generate([[BOS, 1]], SamplingParams(stop_token_ids=(66,)))[0].text == "A"
    unstopped = talker.generate([[BOS, 1]], SamplingParams(max_new_tokens=5, stop_token_ids=()))[0]
    assert (unstopped.token_ids, unstopped.finish_reason) == ([65, 66, END, 67, 33], "length")
    assert unstopped.text == "ABC!"


def test_bos_stops_a_text_without_turns() -> None:
    result = Engine(ScriptedModel({(BOS, 72): [105, BOS]}), TOKENIZER).generate(["H"])[0]
    assert (result.text, result.finish_reason) == ("i", "stop")


def test_the_end_of_the_context_ends_the_answer() -> None:
    model = random_model(max_position_embeddings=24)
    prompt = random_prompts(1, longest=2)[0]
    result = Engine(model, TOKENIZER).generate([prompt], SamplingParams(max_new_tokens=100, stop_token_ids=()))[0]
    assert len(prompt) + len(result.token_ids) == 24
    assert result.finish_reason == "length"
    last = Engine(model, TOKENIZER).generate([[BOS] * 23], SamplingParams(stop_token_ids=()))[0]
    assert len(last.token_ids) == 1


# Streaming


def test_a_stream_gives_what_generate_gives() -> None:
    talker = Engine(random_model(), TOKENIZER)
    for seed, prompt in enumerate(random_prompts(4, longest=20, seed=3)):
        params = SamplingParams(max_new_tokens=40, temperature=1.5, seed=seed)
        result = talker.generate([prompt], params)[0]
        deltas = list(talker.stream(prompt, params))
        assert join_deltas(deltas) == result.parts
        assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + [result.finish_reason]


def test_a_stream_comes_token_by_token_with_whole_characters_and_can_be_left() -> None:
    model = ScriptedModel({(BOS, 1): [*ids("a€"), *CALL, *FORGED, *ids("😀"), END]})
    stream = Engine(model, TOKENIZER).stream([BOS, 1])
    assert model.batch_sizes == []
    assert next(stream).text == "a"
    assert len(model.batch_sizes) == 1
    assert [next(stream).text for _ in range(3)] == ["", "", "€"]  # a token of three makes no character yet
    assert len(model.batch_sizes) == 4
    del stream
    deltas = list(Engine(model, TOKENIZER).stream([BOS, 1]))
    assert [(delta.type, delta.text) for delta in deltas if delta.text] == [
        *[("text", "a"), ("text", "€")],
        *[("python", character) for character in "37*24"],
        *[("python_output", "8")] * 3,
        ("text", "😀"),
    ]
    assert (deltas[-1].text, deltas[-1].finish_reason, deltas[-1].tokens) == ("", "stop", (Token(END),))


# Prompts


def test_a_request_knows_when_its_tokens_were_chosen() -> None:
    engine = Engine(random_model(), TOKENIZER)
    request = engine.add([BOS, 65], SamplingParams(max_new_tokens=3, stop_token_ids=()))
    assert (request.time_to_first_token, request.decoding_seconds) == (None, 0)
    seconds = []
    while not request.finished:
        engine.step()
        seconds.append(request.decoding_seconds)
    assert (request.time_to_first_token or 0) > 0
    assert seconds[0] == 0 and seconds == sorted(seconds) and seconds[-1] > 0


def test_a_string_is_plain_text_after_bos() -> None:
    talker = Engine(ScriptedModel({}), TOKENIZER)
    assert talker.encode("a<|bos|>") == [BOS, *ids("a<|bos|>")]
    assert talker.encode([{"role": "user", "content": "a"}]) == [BOS, USER, *ids("a"), USER_END, ASSISTANT]
    assert talker.encode((BOS, 3)) == [BOS, 3]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("", "prompt 1 is empty"),
        ([], "prompt 1 is empty"),
        ([BOS] * 512, "prompt 1 has 512 tokens, but the model's context is 512"),
        ("x" * 600, "prompt 1 has 601 tokens"),
        ([BOS, 265], "prompt 1 has the token id 265, but the model's ids go from 0 to 264"),
        ([-1], "token id -1"),
        ([1.5], "list of token ids, but has 1.5 in it"),
        ([True], "has True in it"),
        (["a"], "has 'a' in it"),
        ([{"role": "user", "content": "a"}, 3], "has {'role'"),
        (None, "must be a string, a conversation or a list of token ids, got NoneType"),
        (5, "got int"),
        ("\ud800", "prompt 1: .*surrogate"),
        ([{"role": "assistant", "content": "a"}], "prompt 1: .* needs a user message last"),
        ([{"role": "user", "content": 5}], "prompt 1: .*content"),
    ],
)
def test_a_bad_prompt_is_refused_before_anything_runs(wrong: Any, message: str) -> None:
    model = ScriptedModel({})
    talker = Engine(model, TOKENIZER)
    with pytest.raises(UserError, match=message):
        talker.generate([[BOS, 1], wrong])
    with pytest.raises(UserError, match=message.replace("prompt 1", "the prompt")):
        talker.stream(wrong)
    assert model.batch_sizes == []


def test_a_single_prompt_or_too_few_parameters_are_refused() -> None:
    talker = Engine(ScriptedModel({}), TOKENIZER)
    with pytest.raises(UserError, match=r"write generate\(\[prompt\]\)"):
        talker.generate("Hello")
    with pytest.raises(UserError, match="got 2 prompts but 1 SamplingParams"):
        talker.generate([[1], [2]], [SamplingParams()])
    assert talker.generate([]) == []


# The model it is given


def test_a_model_in_training_is_given_back_in_training() -> None:
    model = random_model(attention_dropout=0.9).train()
    talker = Engine(model, TOKENIZER)
    prompt = random_prompts(1, longest=20, seed=5)[0]
    random_state = torch.random.get_rng_state()
    tokens = talker.generate([prompt], SamplingParams(max_new_tokens=8))[0].token_ids
    assert model.training
    assert torch.is_grad_enabled()
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert [tokens] == plain_generate(model.eval(), [prompt], 8)


def test_a_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(UserError, match="the tokenizer has 265 tokens but the model only 100"):
        Engine(ScriptedModel({}, vocab_size=100), TOKENIZER)


def test_it_opens_a_model_folder(tmp_path: Path) -> None:
    model = random_model()
    save_model(model, TOKENIZER, tmp_path / "chat")
    talker = Engine.from_pretrained(tmp_path / "chat")
    prompts = random_prompts(3, longest=20)
    params = SamplingParams(max_new_tokens=3)
    assert run(talker, prompts, params) == run(Engine(model, TOKENIZER), prompts, params)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json: it is not the folder of a trained model"):
        Engine.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"there is no folder .*/missing"):
        Engine.from_pretrained(tmp_path / "missing")
    save_model(random_model(), TOKENIZER, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"can't load a model from .*/cut"):
        Engine.from_pretrained(tmp_path / "cut")
