"""A model that says what a test wrote down for it, and knows what the engine fed it: the cache holds the tokens."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from nanochat.tokenizer import NanoChatTokenizer


def byte_tokenizer() -> NanoChatTokenizer:
    """A tokenizer of 265 tokens: one per byte, then the nine control tokens."""
    return NanoChatTokenizer.from_ranks({bytes([byte]): byte for byte in range(256)})


class ScriptedModel:
    """Answers each prompt, given as ids, with the tokens of its script, by position: tokens that the engine forces
    into the answer take a place in the script too, at which the script may say anything. After its end: byte 33 ("!").
    """

    name_or_path = "scripted"
    training = False
    device = torch.device("cpu")

    def __init__(
        self,
        scripts: Mapping[Sequence[int], Sequence[int]],
        vocab_size: int = 265,
        context_length: int = 512,
        second_choice: int | None = None,
    ) -> None:
        self.scripts = {tuple(prompt): list(answer) for prompt, answer in scripts.items()}
        self.config = SimpleNamespace(vocab_size=vocab_size, max_position_embeddings=context_length)
        self.second_choice = second_choice
        self.batch_sizes: list[int] = []  # of every step

    def __call__(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        past_key_values: Any,
        **_: Any,
    ) -> Any:
        self.batch_sizes.append(len(input_ids))
        states = torch.stack([input_ids, position_ids], dim=-1)[:, None].double()  # as if 1 head of dimension 2
        states, _values = past_key_values.update(states, states, 0)
        logits = torch.zeros(len(input_ids), 1, self.config.vocab_size)
        for row, pairs in enumerate(states[:, 0].long()):  # (T, 2) of id and position
            seen = torch.ones(len(pairs)) if attention_mask is None else attention_mask[row]
            ids, positions = pairs[seen.bool()].T.tolist()
            assert positions == list(range(len(ids))), "positions count what is not padding"
            if self.second_choice is not None:
                logits[row, 0, self.second_choice] = 5
            logits[row, 0, self._next(ids)] = 10
        return SimpleNamespace(logits=logits)

    def _next(self, ids: list[int]) -> int:
        prompts = [prompt for prompt in self.scripts if tuple(ids[: len(prompt)]) == prompt]
        if not prompts:
            raise AssertionError(f"no script for {ids}")
        prompt = max(prompts, key=len)  # a later turn's prompt begins with the earlier one's
        answer, said = self.scripts[prompt], len(ids) - len(prompt)
        return answer[said] if said < len(answer) else 33
