"""Other people's trainers train our model: an `accelerate` loop, Transformers' `Trainer`, TRL's `SFTTrainer`.

Each has the loss curve of a plain PyTorch loop over whole batches, however it splits them: one normaliser, the trained
tokens of the whole batch. And each saves folders that `from_pretrained` opens.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from training_setup import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from nanochat import NanoChatForCausalLM
from nanochat.tokenizer import NanoChatTokenizer

Row = dict[str, torch.Tensor]

STEPS, LR = 12, 0.01
REPLIES = {"a": "a", "b": "bbbb", "c": "ccccccc", "d": "dddddddddd"}  # of very different lengths
CONVERSATIONS = [
    [{"role": "user", "content": f"Say {letter}"}, {"role": "assistant", "content": reply}]
    for letter, reply in REPLIES.items()
]


@pytest.fixture(scope="module")
def tokenizer() -> NanoChatTokenizer:
    return NanoChatTokenizer.from_ranks({bytes([byte]): byte for byte in range(256)})


@pytest.fixture(scope="module")
def rows(tokenizer: NanoChatTokenizer) -> list[Row]:
    """The conversations as token ids, with labels of -100 wherever the assistant does not speak."""
    encoded = tokenizer.apply_chat_template(CONVERSATIONS, return_assistant_tokens_mask=True)
    pairs = [map(torch.tensor, pair) for pair in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)]
    return [{"input_ids": ids, "labels": torch.where(mask == 1, ids, -100)} for ids, mask in pairs]


def new_model() -> NanoChatForCausalLM:
    return tiny_model(max_position_embeddings=64)


def collate(rows: list[Row]) -> Row:
    """Padded on the right with what is masked out of attention and loss."""
    rows = [{**row, "attention_mask": torch.ones_like(row["input_ids"])} for row in rows]
    padding = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {
        name: pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)
        for name, value in padding.items()
    }


@pytest.fixture(scope="module")
def curve(rows: list[Row]) -> list[float]:
    """Nats per trained token, step by step, of a plain loop over all rows at once; it falls."""
    model, batch = new_model(), collate(rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    return losses


def assert_opens(folder: Path, trained: NanoChatForCausalLM) -> None:
    """The folder holds the trained weights, for the Auto class."""
    opened = AutoModelForCausalLM.from_pretrained(folder)
    assert type(opened) is NanoChatForCausalLM
    for name, weight in trained.state_dict().items():
        assert torch.equal(opened.state_dict()[name], weight), name


def assert_same_tokenizer(folder: Path, tokenizer: NanoChatTokenizer) -> None:
    """The folder holds the tokenizer with its chat template, for the Auto class."""
    opened = AutoTokenizer.from_pretrained(folder)
    assert type(opened) is NanoChatTokenizer and opened.get_vocab() == tokenizer.get_vocab()
    assert opened.apply_chat_template(CONVERSATIONS) == tokenizer.apply_chat_template(CONVERSATIONS)


@pytest.mark.parametrize("split", [1, 2, 4])
def test_an_accelerate_loop(rows: list[Row], curve: list[float], tmp_path: Path, split: int) -> None:
    """As on accelerate's page about gradient accumulation over rows of different lengths."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=split)
    model, optimizer, loader = accelerator.prepare(
        model := new_model(),
        torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0),
        DataLoader(rows, batch_size=len(rows) // split, collate_fn=collate),
    )
    losses = []
    for _ in range(STEPS):
        batches = list(loader)
        num_items_in_batch = sum((batch["labels"] != -100).sum() for batch in batches)
        losses.append(0.0)
        for batch in batches:
            with accelerator.accumulate(model):
                loss = model(**batch, num_items_in_batch=num_items_in_batch).loss
                losses[-1] += loss.item()
                accelerator.backward(loss * split)  # it divides by the number of parts
                optimizer.step()
                optimizer.zero_grad()
    assert losses == pytest.approx(curve, rel=1e-3)
    accelerator.unwrap_model(model).save_pretrained(tmp_path, save_function=accelerator.save)
    assert_opens(tmp_path, model)


def arguments(folder: Path, split: int) -> dict[str, Any]:
    """What `TrainingArguments` and TRL's must both be told to train as the plain loop does."""
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": len(CONVERSATIONS) // split,
        "gradient_accumulation_steps": split,
        "max_steps": STEPS,
        "save_steps": STEPS,
        "logging_steps": 1,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "report_to": "none",
        "disable_tqdm": True,
    }


def reported(trainer: Trainer) -> list[float]:
    """The loss of every step in a trainer's log."""
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


@pytest.mark.parametrize("split", [1, 2, 4])
def test_the_trainer_of_transformers(
    rows: list[Row], curve: list[float], tokenizer: NanoChatTokenizer, tmp_path: Path, split: int
) -> None:
    trainer = Trainer(
        new_model(),
        TrainingArguments(**arguments(tmp_path, split)),
        data_collator=collate,
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    assert reported(trainer) == pytest.approx(curve, rel=1e-3)
    assert_opens(tmp_path / f"checkpoint-{STEPS}", trainer.model)
    assert_same_tokenizer(tmp_path / f"checkpoint-{STEPS}", tokenizer)


def sft_trainer(tokenizer: NanoChatTokenizer, folder: Path, split: int, **options: Any) -> Any:
    """TRL's trainer, given conversations as they are: our chat template tells it which tokens the assistant says."""
    trl = pytest.importorskip("trl", reason="trl is not installed (it is in the extra `dev`)")
    from datasets import Dataset

    return trl.SFTTrainer(
        new_model(),
        trl.SFTConfig(**arguments(folder, split), assistant_only_loss=True, **options),
        train_dataset=Dataset.from_list([{"messages": conversation} for conversation in CONVERSATIONS]),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("split", [1, 2, 4])
def test_the_sft_trainer_of_trl(curve: list[float], tokenizer: NanoChatTokenizer, tmp_path: Path, split: int) -> None:
    trainer = sft_trainer(tokenizer, tmp_path, split)
    trainer.train()
    assert reported(trainer) == pytest.approx(curve, rel=1e-3)
    assert_opens(tmp_path / f"checkpoint-{STEPS}", trainer.model)
    assert_same_tokenizer(tmp_path / f"checkpoint-{STEPS}", tokenizer)


def test_the_sft_trainer_of_trl_with_packed_rows(
    curve: list[float], tokenizer: NanoChatTokenizer, tmp_path: Path
) -> None:
    """All conversations in one row, told apart by their positions: the same losses as one to a row."""
    trainer = sft_trainer(tokenizer, tmp_path, 1, packing=True, max_length=128)
    assert len(trainer.train_dataset) == 1
    trainer.train()
    assert reported(trainer) == pytest.approx(curve, rel=1e-3)
