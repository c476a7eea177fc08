"""Rounded weights are made once, kept beside the model, and made anew when they are not the model's any more."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_model import TOKENIZER
from small_models import needs_native, random_model, random_prompts, run
from torch import Tensor

from nanochat.checkpoints.folder import save_model
from nanochat.inference import Engine, SamplingParams, prepared
from nanochat.model.native import packed_weights

pytestmark = needs_native
PROMPTS = random_prompts(3, longest=20)
PARAMS = SamplingParams(8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(random_model(), TOKENIZER, tmp_path / "chat")
    return tmp_path / "chat"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The formats in which weights were packed, each time they were."""
    formats: list[str] = []

    def counted(model: Any, format: str) -> list[Tensor]:
        formats.append(format)
        return packed_weights(model, format)

    monkeypatch.setattr(prepared, "packed_weights", counted)
    return formats


def answers(folder: Path, format: str) -> list[list[int]]:
    return run(Engine.from_pretrained(folder, format), PROMPTS, PARAMS)


def fresh(format: str) -> list[list[int]]:
    return run(Engine(random_model(), TOKENIZER, format), PROMPTS, PARAMS)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_made_once_and_kept(folder: Path, made: list[str], format: str) -> None:
    first = answers(folder, format)
    assert [file.name for file in (folder / ".prepared").iterdir()] == [f"{format}.safetensors"]
    assert answers(folder, format) == first
    assert made == [format]
    assert first == fresh(format)


def test_each_format_has_its_own(folder: Path, made: list[str]) -> None:
    for format in ("int8", "int4", "int8", "int4"):
        answers(folder, format)
    assert made == ["int8", "int4"]


@pytest.mark.parametrize("format", ["fp32", "bf16"])
def test_floats_are_not_kept(folder: Path, format: str) -> None:
    assert answers(folder, format) == fresh(format)
    assert not (folder / ".prepared").exists()


def test_made_anew_when_the_model_changes(folder: Path, made: list[str]) -> None:
    answers(folder, "int8")
    other = random_model()
    torch.manual_seed(1)
    for parameter in other.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    save_model(other, TOKENIZER, folder)
    assert answers(folder, "int8") == run(Engine(other, TOKENIZER, "int8"), PROMPTS, PARAMS)
    assert answers(folder, "int8") != fresh("int8")
    assert made[:2] == ["int8", "int8"]
    weights = folder / "model.safetensors"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 10**9))
    made.clear()
    answers(folder, "int8")
    assert made == ["int8"]


@pytest.mark.parametrize("damage", [b"", b"not a file of tensors", None])
def test_a_damaged_file_is_made_anew(folder: Path, made: list[str], damage: bytes | None) -> None:
    expected = answers(folder, "int8")
    file = folder / ".prepared" / "int8.safetensors"
    file.write_bytes(file.read_bytes()[:-100] if damage is None else damage)
    assert answers(folder, "int8") == expected
    assert answers(folder, "int8") == expected
    assert made == ["int8", "int8"]


def test_a_folder_that_can_not_be_written_to_goes_without(
    folder: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".prepared").write_text("a file where the folder should be")
    assert answers(folder, "int8") == fresh("int8")
    (folder / ".prepared").unlink()
    folder.chmod(0o555)
    try:
        assert answers(folder, "int8") == fresh("int8")
    finally:
        folder.chmod(0o755)

    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(prepared, "atomic_file", refuse)
    assert answers(folder, "int4") == fresh("int4")
    assert not (folder / ".prepared" / "int4.safetensors").exists()


def test_a_model_that_has_learnt_is_prepared_as_it_is(folder: Path) -> None:
    engine = Engine.from_pretrained(folder, "int8")
    before = run(engine, PROMPTS, PARAMS)
    file = folder / ".prepared" / "int8.safetensors"
    kept = file.read_bytes()
    with torch.no_grad():
        for parameter in engine.model.parameters():
            parameter.copy_(parameter.flip(0))
    after = run(engine, PROMPTS, PARAMS)
    assert after == run(Engine(engine.model, TOKENIZER, "int8"), PROMPTS, PARAMS) != before
    assert file.read_bytes() == kept


def test_two_processes_at_once(folder: Path) -> None:
    code = (
        "import sys; from nanochat.inference import Engine, SamplingParams\n"
        "for _ in range(5):\n"
        "    print(Engine.from_pretrained(sys.argv[1], 'int8').generate([[256]], SamplingParams(8))[0].token_ids)"
    )
    expected = run(Engine(random_model(), TOKENIZER, "int8"), [[256]], PARAMS)[0]
    other = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    while other.poll() is None:  # all the time one of them makes what the other is reading
        time.sleep(0.05)
        (folder / ".prepared" / "int8.safetensors").unlink(missing_ok=True)
        assert run(Engine.from_pretrained(folder, "int8"), [[256]], PARAMS) == [expected]
    assert other.stdout is not None
    assert other.stdout.read() == f"{expected}\n" * 5
    assert other.returncode == 0
    assert [file.name for file in (folder / ".prepared").iterdir()] == ["int8.safetensors"]
