"""Pretraining as a stage: from text to a base model, the same each time, and resumable with nothing but its folder."""

import dataclasses
import json
import os
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file
from toy_data import pretrain_options
from transformers import AutoModelForCausalLM, AutoTokenizer

from nanochat.common import UserError
from nanochat.stages.options import PretrainOptions
from nanochat.stages.pretrain import RECIPE_OPTIONS, default_vocab_size, pretrain
from nanochat.stages.run import Run
from nanochat.tokenizer import train_tokenizer
from nanochat.training.loop import Interrupted
from nanochat.training.run_log import read_metrics


def same(one, other):
    one, other = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return all(torch.equal(one[name], other[name]) for name in one)


def curve(folder):
    return [(record["loss"], record.get("val_bpb")) for record in read_metrics(folder / "metrics.jsonl")]


def test_the_base_model_is_a_model_folder_that_knows_its_text(finished):
    model = AutoModelForCausalLM.from_pretrained(finished / "run" / "base")
    tokenizer = AutoTokenizer.from_pretrained(finished / "run" / "base")
    assert model.config.num_hidden_layers == 1 and model.config.max_position_embeddings == 64
    assert model.config.vocab_size == len(tokenizer)
    assert model.dtype == torch.float32
    records = [record for record in read_metrics(finished / "run" / "metrics.jsonl") if record["stage"] == "base"]
    assert len(records) == 10 and records[-1]["loss"] < records[0]["loss"]
    assert 0 < records[-1]["val_bpb"] < 8


def test_the_layout_of_a_run(finished):
    names = {path.name for path in (finished / "run").iterdir() if not path.name.startswith(".")}
    assert names == {"recipe.json", "tokenizer", "data", "base", "chat", "metrics.jsonl"}
    assert not list((finished / "run").rglob("*.tmp"))


def test_twice_the_same_options_give_the_same_model(finished, tmp_path):
    options = dataclasses.replace(pretrain_options(finished), run=tmp_path / "again")
    assert pretrain(options) == tmp_path / "again" / "base"
    assert same(tmp_path / "again" / "base", finished / "run" / "base")
    pretrain(dataclasses.replace(options, run=tmp_path / "other", seed=1))
    assert not same(tmp_path / "other" / "base", finished / "run" / "base")


@pytest.mark.parametrize("stop", [0, 4, 9])
def test_stopped_and_resumed_is_the_same_run(finished, tmp_path, interrupt_at, capsys, stop):
    options = dataclasses.replace(pretrain_options(finished), run=tmp_path / "my run")
    undo = interrupt_at("base", stop)
    with pytest.raises(Interrupted):
        pretrain(options)
    assert "Stopped after step" in capsys.readouterr().out
    checkpoint = tmp_path / "my run" / "base" / "checkpoints" / f"step-{stop + 1:06d}"
    assert AutoModelForCausalLM.from_pretrained(checkpoint).config.num_hidden_layers == 1
    undo()
    pretrain(PretrainOptions(run=tmp_path / "my run", resume=True))
    assert same(tmp_path / "my run" / "base", finished / "run" / "base")
    assert curve(tmp_path / "my run") == curve(finished / "run")[:10]


def test_resuming_before_the_first_checkpoint_begins_again(finished, tmp_path):
    """Killed in the first seconds: there is a recipe, but no checkpoint yet."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("recipe.json", "tokenizer"):
        source = finished / "run" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, run / name)
    pretrain(PretrainOptions(run=run, resume=True))
    assert same(run / "base", finished / "run" / "base")


def test_a_damaged_checkpoint_is_named_with_its_remedy(finished, tmp_path, interrupt_at):
    options = dataclasses.replace(pretrain_options(finished), run=tmp_path / "run")
    undo = interrupt_at("base", 5)
    with pytest.raises(Interrupted):
        pretrain(options)
    undo()
    weights = tmp_path / "run" / "base" / "checkpoints" / "step-000006" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"step-000006 is damaged.*delete that folder"):
        pretrain(PretrainOptions(run=tmp_path / "run", resume=True))
    shutil.rmtree(weights.parent)
    pretrain(PretrainOptions(run=tmp_path / "run", resume=True))
    assert same(tmp_path / "run" / "base", finished / "run" / "base")


def test_damaged_data_of_the_run_is_named(finished, tmp_path, interrupt_at):
    options = dataclasses.replace(pretrain_options(finished), run=tmp_path / "run")
    undo = interrupt_at("base", 2)
    with pytest.raises(Interrupted):
        pretrain(options)
    undo()
    tokens = tmp_path / "run" / "data" / "base-train" / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:100])
    with pytest.raises(UserError, match=r"tokens\.bin has 100 bytes"):
        pretrain(PretrainOptions(run=tmp_path / "run", resume=True))


def test_data_of_another_tokenizer_is_not_gone_on_with(finished, tmp_path, interrupt_at):
    options = dataclasses.replace(pretrain_options(finished), run=tmp_path / "run")
    undo = interrupt_at("base", 2)
    with pytest.raises(Interrupted):
        pretrain(options)
    undo()
    other = train_tokenizer(["zebras and yaks in quite another book"] * 3, 270)
    other.save_pretrained(tmp_path / "run" / "tokenizer")
    with pytest.raises(UserError, match="made with another tokenizer"):
        pretrain(PretrainOptions(run=tmp_path / "run", resume=True))


def test_a_tokenizer_in_the_run_is_used(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished / "run" / "tokenizer", run / "tokenizer")
    before = (run / "tokenizer" / "tokenizer.json").stat().st_mtime_ns
    pretrain(dataclasses.replace(pretrain_options(finished), run=run, vocab_size=300))
    assert (run / "tokenizer" / "tokenizer.json").stat().st_mtime_ns == before
    assert Run(run).load_recipe("base")[0].vocab_size == len(AutoTokenizer.from_pretrained(run / "tokenizer"))


def test_chosen_values_reach_the_recipe(finished, tmp_path):
    chosen = {"seq_len": 32, "tokens": 128, "batch_tokens": 64, "micro_batch_tokens": 32, "matrix_lr": 0.011}
    chosen |= {"embedding_lr": 0.012, "head_lr": 0.013, "weight_decay": 0.014, "dtype": "float32", "seed": 5}
    pretrain(dataclasses.replace(pretrain_options(finished), run=tmp_path / "run", **chosen))
    recipe, origin = Run(tmp_path / "run").load_recipe("base")
    assert {name: getattr(recipe, name) for name in chosen} == chosen
    assert set(RECIPE_OPTIONS) == set(chosen)
    assert origin["data"] == str(finished / "corpus.jsonl")


def test_several_kinds_of_files_together(tmp_path):
    """A folder with text, gzipped lines and parquet, and the Primer beside it."""
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "ein Ordner für Texte"
    folder.mkdir()
    (folder / "a.txt").write_text("Ein Fuchs läuft über das Feld. 狐狸 🦊\n\n" * 60, encoding="utf-8")
    with gzip.open(folder / "b.jsonl.gz", "wt") as file:
        file.writelines(
            json.dumps({"text": f"Line {number} of the second file, with some words."}) + "\n" for number in range(60)
        )
    pq.write_table(pa.table({"text": [f"Row {number} of a table." for number in range(60)]}), folder / "c.parquet")
    data = f"primer,{folder}"
    sizes = {"depth": 1, "vocab_size": 300, "seq_len": 32, "tokens": 640, "batch_tokens": 320, "dtype": "float32"}
    pretrain(PretrainOptions(data=data, run=tmp_path / "run", **sizes))
    assert Run(tmp_path / "run").is_complete("base")


def test_the_disk_full_at_the_end_is_said(finished, tmp_path, monkeypatch):
    from nanochat.stages import run as run_module

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_module, "save_model", full)
    with pytest.raises(UserError, match=r"base can't be written.*No space left on device.*--resume"):
        pretrain(dataclasses.replace(pretrain_options(finished), run=tmp_path / "run"))


def test_vocabularies_grow_with_depth_within_bounds():
    sizes = [default_vocab_size(depth) for depth in range(1, 40)]
    assert sizes == sorted(sizes) and sizes[-1] == 65536
    assert all(size & (size - 1) == 0 for size in sizes)


@pytest.mark.skipif(sys.platform == "win32", reason="needs permissions as on POSIX")
def test_a_folder_one_may_not_write_to(finished, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="Permission denied"):
        pretrain(dataclasses.replace(pretrain_options(finished), run=tmp_path / "run"))
