"""Samples while training: always from the same beginnings, kept with the metrics, and no trace in the model."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from toy_data import pretrain_options

from nanochat.data.store import TokenStore
from nanochat.inference.engine import Engine
from nanochat.stages import run as run_module
from nanochat.stages import samples as samples_module
from nanochat.stages.pretrain import pretrain
from nanochat.stages.samples import Samples, one_line
from nanochat.training.run_log import read_metrics


def store_of(folder, documents):
    """A store of documents given as (ids, mask)."""
    return TokenStore.write(folder, documents, 400)


@pytest.fixture
def engine(finished):
    return Engine.from_pretrained(finished / "run" / "base")


def test_every_validation_has_the_same_beginnings(finished, monkeypatch, capsys):
    monkeypatch.setattr(Samples, "affordable", True)
    pretrain(dataclasses.replace(pretrain_options(finished), run=finished / "with"))
    records = [record for record in read_metrics(finished / "with" / "metrics.jsonl") if "val_bpb" in record]
    beginnings = [[sample["beginning"] for sample in record["samples"]] for record in records]
    assert len(records) == 10 and len(beginnings[0]) == 3 and all(beginnings[0])
    assert all(one == beginnings[0] for one in beginnings)
    printed = " ".join(capsys.readouterr().out.split())
    for record in records:
        for sample in record["samples"]:
            assert f"step {record['step'] + 1}: {one_line(sample)}".strip() in printed


def test_a_conversation_is_answered(finished):
    last = read_metrics(finished / "run" / "metrics.jsonl")[-1]
    assert last["stage"] == "chat" and len(last["samples"]) == 3
    for sample in last["samples"]:
        assert sample["beginning"].startswith("What does the ") and sample["beginning"].endswith("no?")


def test_with_and_without_samples_the_run_is_bit_identical(finished, monkeypatch):
    monkeypatch.setattr(Samples, "affordable", True)
    pretrain(dataclasses.replace(pretrain_options(finished), run=finished / "with"))
    monkeypatch.setattr(Samples, "take", lambda self, model: [])
    pretrain(dataclasses.replace(pretrain_options(finished), run=finished / "without"))
    curves = [
        [(record["loss"], record.get("val_bpb")) for record in read_metrics(finished / name / "metrics.jsonl")]
        for name in ("with", "without")
    ]
    assert curves[0] == curves[1]
    one, other = (load_file(finished / name / "base" / "model.safetensors") for name in ("with", "without"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_pytorchs_random_numbers_and_the_models_mode_are_left_alone(engine, tmp_path):
    store = store_of(tmp_path / "store", [(range(1, 40), None)] * 5)
    engine.model.train()
    before = torch.get_rng_state()
    Samples(engine.tokenizer, store, 64).take(engine.model)
    assert torch.equal(before, torch.get_rng_state()) and engine.model.training


def test_the_same_model_says_the_same(engine, tmp_path):
    store = store_of(tmp_path / "store", [(range(60, 90), None), (range(90, 130), None)])
    first, again = (Samples(engine.tokenizer, store, 64).take(engine.model) for _ in range(2))
    assert first == again and len(first) == 2


def test_beginnings_leave_room_and_something_to_say(engine, tmp_path):
    texts = [(range(3), None), (range(20), None), ([7], None), (range(9), None)]
    assert Samples(engine.tokenizer, store_of(tmp_path / "a", texts), 64).beginnings == [list(range(8))] * 2
    assert Samples(engine.tokenizer, store_of(tmp_path / "b", texts), 4).beginnings == [[0, 1]] * 3
    chats = [(range(30), [0] * 20 + [1] * 10), (range(10), [0] * 6 + [1] * 4), (range(4), [0, 0, 1, 1])]
    samples = Samples(engine.tokenizer, store_of(tmp_path / "c", chats), 24)
    assert samples.beginnings == [list(range(6)), [0, 1]] and samples.params.temperature == 0


def test_without_a_beginning_there_are_no_samples(engine, tmp_path):
    assert Samples(engine.tokenizer, store_of(tmp_path / "store", [([5], None)]), 64).take(engine.model) == []


def test_samples_wait_until_they_are_affordable_again(engine, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(samples_module.time, "monotonic", lambda: now[0])
    samples = Samples(engine.tokenizer, store_of(tmp_path / "store", [(range(20), None)]), 64)
    assert samples.affordable
    whole = samples_module.Engine.generate

    def slow(self, *arguments):
        now[0] += 3.0
        return whole(self, *arguments)

    monkeypatch.setattr(samples_module.Engine, "generate", slow)
    samples.take(engine.model)
    assert not samples.affordable
    now[0] = 99.0
    assert not samples.affordable
    now[0] = 101.0
    assert samples.affordable


def test_the_last_step_has_samples_in_any_case(finished, monkeypatch):
    monkeypatch.setattr(run_module.Samples, "affordable", False)
    pretrain(dataclasses.replace(pretrain_options(finished), run=finished / "dear"))
    records = read_metrics(finished / "dear" / "metrics.jsonl")
    assert [record["step"] for record in records if "samples" in record] == [9]


def test_a_line_for_the_terminal():
    assert one_line({"beginning": "Once\nupon", "text": " a time\n\nthere"}) == "Once upon ▸ a time there"
    assert one_line({"beginning": "x" * 99 + "end", "text": "."}) == "…" + "x" * 57 + "end ▸ ."
