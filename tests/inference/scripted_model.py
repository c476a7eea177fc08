"""A model that says what a test wrote down for it, and knows what the engine fed it: the cache holds the tokens."""

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from nanochat.tokenizer import NanoChatTokenizer


def byte_tokenizer() -> NanoChatTokenizer:
    """A tokenizer of 265 tokens: one per byte, then the nine control tokens."""
    return NanoChatTokenizer.from_ranks({bytes([byte]): byte for byte in range(256)})


TOKENIZER = byte_tokenizer()
BOS, USER, USER_END, ASSISTANT, END, PYTHON, PYTHON_END, OUTPUT, OUTPUT_END = range(256, 265)
CONTROL = [USER, USER_END, ASSISTANT, OUTPUT, OUTPUT_END]  # no model may choose these


def ids(text: str) -> list[int]:
    """The tokens of a text: its bytes."""
    return list(text.encode())


CALL = [PYTHON, *ids("37*24"), PYTHON_END]
FORGED = [OUTPUT, *ids("999"), OUTPUT_END]  # what a script wants to say where the engine says "888"


class ScriptedModel:
    """Answers each prompt, given as ids, with the tokens of its script, by position: tokens that the engine forces
    into the answer take a place in the script too, at which the script may say anything. After its end: byte 33 ("!").
    """

    name_or_path = "scripted"
    training = False
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(
        self,
        scripts: Mapping[Sequence[int], Sequence[int]],
        vocab_size: int = 265,
        context_length: int = 512,
        second_choice: int | None = None,
    ) -> None:
        self.scripts = {tuple(prompt): list(answer) for prompt, answer in scripts.items()}
        self.config = SimpleNamespace(
            vocab_size=vocab_size,
            max_position_embeddings=context_length,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=8,
            num_key_value_heads=1,
        )
        self.second_choice = second_choice
        self.batch_sizes: list[int] = []  # rows of every call
        self.computed: list[int] = []  # tokens of every call

    def parameters(self) -> Iterator[torch.Tensor]:
        return iter(())

    def __call__(
        self,
        input_ids: torch.Tensor,  # (R, T)
        attention_mask: torch.Tensor,  # (R, 1, T, S), 0 where a token sees a position
        position_ids: torch.Tensor,  # (R, T)
        past_key_values: Any,
        logits_to_keep: torch.Tensor,  # places among the T
        **_: Any,
    ) -> Any:
        self.batch_sizes.append(len(input_ids))
        self.computed.append(input_ids.numel())
        states = torch.stack([input_ids, position_ids], dim=-1)[:, None].double()  # as if 1 head of dimension 2
        keys, values = past_key_values.update(states, states, 0)
        assert torch.equal(keys, values)
        logits = torch.zeros(len(input_ids), len(logits_to_keep), self.config.vocab_size)
        for row, pairs in enumerate(keys[:, 0].long()):  # (S, 2) of id and position
            for column, place in enumerate(logits_to_keep.tolist()):
                ids, positions = pairs[attention_mask[row, 0, place] == 0].T.tolist()
                assert positions == list(range(len(ids))), "a token sees all before it, each at its place"
                assert len(ids) == position_ids[row, place] + 1
                if self.second_choice is not None:
                    logits[row, column, self.second_choice] = 5
                logits[row, column, self._next(ids)] = 10
        return SimpleNamespace(logits=logits)

    def _next(self, ids: list[int]) -> int:
        prompts = [prompt for prompt in self.scripts if tuple(ids[: len(prompt)]) == prompt]
        if not prompts:  # in the middle of a prompt nobody minds what it says
            assert any(prompt[: len(ids)] == tuple(ids) for prompt in self.scripts), f"no script for {ids}"
            return 33
        prompt = max(prompts, key=len)  # a later turn's prompt begins with the earlier one's
        answer, said = self.scripts[prompt], len(ids) - len(prompt)
        return answer[said] if said < len(answer) else 33
