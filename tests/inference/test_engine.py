import random
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_model import ScriptedModel, byte_tokenizer
from transformers.models.nanochat import modeling_nanochat as transformers_nanochat

from nanochat.checkpoints.folder import save_model
from nanochat.common import UserError
from nanochat.inference import Engine, Result, SamplingParams, engine, join_deltas
from nanochat.model.configuration import NanoChatConfig
from nanochat.model.modeling import NanoChatForCausalLM

TOKENIZER = byte_tokenizer()
BOS, USER, USER_END, ASSISTANT, END, PYTHON, PYTHON_END, OUTPUT, OUTPUT_END = range(256, 265)
CONTROL = [USER, USER_END, ASSISTANT, OUTPUT, OUTPUT_END]


def random_model(classes: Any = None, **changes: Any) -> Any:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": BOS, "eos_token_id": END, "pad_token_id": BOS}
    heads = {"num_key_value_heads": 2, "max_position_embeddings": 96, "vocab_size": 265}
    torch.manual_seed(0)
    model = (classes or NanoChatForCausalLM)(NanoChatConfig(**{**sizes, **ids, **heads, **changes}))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return model.eval()


def random_prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[BOS, *(rng.randrange(256) for _ in range(rng.randrange(longest)))] for _ in range(count)]


def plain_generate(model: Any, prompt: list[int], max_new_tokens: int) -> list[int]:
    ids = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        suppress_tokens=CONTROL,
        eos_token_id=[END, BOS],
        pad_token_id=0,
    )
    return ids[0, len(prompt) :].tolist()


# Against plain `generate`


@pytest.mark.parametrize("classes", [NanoChatForCausalLM, transformers_nanochat.NanoChatForCausalLM])
def test_greedy_tokens_are_those_of_generate_alone_and_in_ragged_batches(classes: Any) -> None:
    model = random_model(classes)
    prompts = random_prompts(20, longest=40)
    params = [SamplingParams(max_new_tokens=4 + 2 * n) for n in range(20)]
    ragged = Engine(model, TOKENIZER).generate(prompts, params)
    for prompt, its, result in zip(prompts, params, ragged):
        expected = plain_generate(model, prompt, its.max_new_tokens)
        assert result.token_ids == expected
        assert Engine(model, TOKENIZER).generate([prompt], its)[0] == result


def test_many_prompts_run_in_several_batches_and_come_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MAX_ROWS", 4)
    model = random_model()
    prompts = random_prompts(11, longest=20, seed=1)
    results = Engine(model, TOKENIZER).generate(prompts, SamplingParams(max_new_tokens=5))
    assert [result.token_ids for result in results] == [plain_generate(model, prompt, 5) for prompt in prompts]


def test_finished_rows_leave_the_batch() -> None:
    scripts = {(BOS, 1): [65, END], (BOS, 2, 2): [66] * 5 + [END], (BOS, 3): [67] * 3 + [END]}
    model = ScriptedModel(scripts)
    results = Engine(model, TOKENIZER).generate([list(prompt) for prompt in scripts])
    assert [result.text for result in results] == ["A", "BBBBB", "CCC"]
    assert model.batch_sizes == [3, 3, 2, 2, 1, 1]


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


# Sampling


def test_a_seeds_answer_does_not_depend_on_the_batch() -> None:
    talker = Engine(random_model(), TOKENIZER)
    prompts = random_prompts(6, longest=30, seed=2)
    params = [SamplingParams(max_new_tokens=16, temperature=1.0, top_p=0.95, seed=n) for n in range(6)]
    together = talker.generate(prompts, params)
    shuffled = talker.generate(prompts[::-1], params[::-1])[::-1]
    alone = [talker.generate([prompt], its)[0] for prompt, its in zip(prompts, params)]
    assert together == shuffled == alone
    assert talker.generate(prompts, SamplingParams(max_new_tokens=16, temperature=1.0, seed=99)) != together


# Ends


def test_stop_tokens_end_the_answer_and_are_not_in_the_text() -> None:
    talker = Engine(ScriptedModel({(BOS, 1): [65, 66, END, 67]}), TOKENIZER)
    assert talker.generate([[BOS, 1]]) == [Result([65, 66, END], "AB", [{"type": "text", "text": "AB"}], "stop")]
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


# The calculator


def ids(text: str) -> list[int]:
    return list(text.encode())


CALL = [PYTHON, *ids("37*24"), PYTHON_END]
FORGED = [OUTPUT, *ids("999"), OUTPUT_END]  # what the script wants to say where the engine says "888"


def test_the_result_of_a_call_is_written_into_the_answer() -> None:
    question = [{"role": "user", "content": "37*24?"}]
    talker = Engine(ScriptedModel({tuple(encoded(question)): [*CALL, *FORGED, *ids("It is 888."), END]}), TOKENIZER)
    result = talker.generate([question])[0]
    assert result.token_ids == [*CALL, OUTPUT, *ids("888"), OUTPUT_END, *ids("It is 888."), END]
    assert result.text == "It is 888."
    assert result.parts == [
        {"type": "python", "text": "37*24"},
        {"type": "python_output", "text": "888"},
        {"type": "text", "text": "It is 888."},
    ]
    # Put back, the parts are the very tokens that were generated.
    again = talker.encode([*question, {"role": "assistant", "content": result.parts}, question[0]])
    before = talker.encode(question)
    assert again[len(before) : len(before) + len(result.token_ids)] == result.token_ids


def encoded(conversation: Any) -> list[int]:
    return Engine(ScriptedModel({}), TOKENIZER).encode(conversation)


def test_calls_work_in_ragged_batches_at_different_times() -> None:
    scripts = {
        (BOS, 1): [*CALL, *FORGED, END],
        (BOS, 2, 2, 2): [*ids("so: "), PYTHON, *ids("1/0"), PYTHON_END, *ids("hm"), END],
        (BOS, 3, 3): [*ids("a"), PYTHON, *ids("2**20"), PYTHON_END, *[END] * 9, *ids("."), *CALL, *[BOS] * 5, END],
    }
    results = Engine(ScriptedModel(scripts), TOKENIZER).generate([list(prompt) for prompt in scripts])
    assert [[(part["type"], part["text"]) for part in result.parts] for result in results] == [
        [("python", "37*24"), ("python_output", "888")],
        [("text", "so: "), ("python", "1/0"), ("text", "hm")],
        [
            ("text", "a"),
            ("python", "2**20"),
            ("python_output", "1048576"),
            ("text", "."),
            ("python", "37*24"),
            ("python_output", "888"),
        ],
    ]
    assert [result.finish_reason for result in results] == ["stop"] * 3


def test_a_call_that_is_cut_off_by_the_limit_stays_open() -> None:
    talker = Engine(ScriptedModel({(BOS, 1): [*CALL, *FORGED]}), TOKENIZER)
    for limit in range(1, 13):
        result = talker.generate([[BOS, 1]], SamplingParams(max_new_tokens=limit))[0]
        assert len(result.token_ids) == limit
        assert result.finish_reason == "length"
    assert talker.generate([[BOS, 1]], SamplingParams(max_new_tokens=3))[0].parts == [{"type": "python", "text": "37"}]


def test_an_end_without_a_call_computes_nothing() -> None:
    result = Engine(ScriptedModel({(BOS, 1): [*ids("1+1"), PYTHON_END, *ids("x"), END]}), TOKENIZER).generate(
        [[BOS, 1]]
    )
    assert result[0].text == "1+1x"


@pytest.mark.parametrize("forged", CONTROL)
def test_a_model_can_write_neither_tool_results_nor_other_turns(forged: int) -> None:
    model = ScriptedModel({(BOS, 1): [65, forged, 66, END]}, second_choice=63)
    talker = Engine(model, TOKENIZER)
    assert talker.generate([[BOS, 1]])[0].text == "A?B"
    hot = [SamplingParams(max_new_tokens=2, temperature=50.0, seed=seed) for seed in range(100)]
    assert not any(forged in result.token_ids for result in talker.generate([[BOS, 1]] * 100, hot))


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
    assert next(stream).text == "€"
    assert len(model.batch_sizes) == 4
    del stream
    deltas = list(Engine(model, TOKENIZER).stream([BOS, 1]))
    assert [(delta.type, delta.text) for delta in deltas] == [
        *[("text", "a"), ("text", "€")],
        *[("python", character) for character in "37*24"],
        *[("python_output", "8")] * 3,
        *[("text", "😀"), ("text", "")],
    ]


# Prompts


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
    assert tokens == plain_generate(model.eval(), prompt, 8)


def test_a_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(UserError, match="the tokenizer has 265 tokens but the model only 100"):
        Engine(ScriptedModel({}, vocab_size=100), TOKENIZER)


def test_it_opens_a_model_folder(tmp_path: Path) -> None:
    model = random_model()
    save_model(model, TOKENIZER, tmp_path / "chat")
    talker = Engine.from_pretrained(tmp_path / "chat")
    prompts = random_prompts(3, longest=20)
    params = SamplingParams(max_new_tokens=3)
    assert talker.generate(prompts, params) == Engine(model, TOKENIZER).generate(prompts, params)


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
