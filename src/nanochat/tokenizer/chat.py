"""Conversations to text by a chat template, and from the text's spans to a mask over its tokens."""

import itertools
import threading
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from nanochat.common import UserError

# Transformers compiles a template once and keeps the spans being tracked in it, shared by all threads.
_template_lock = threading.Lock()


@lru_cache
def default_chat_template() -> str:
    """The Jinja source of NanoChat's chat format."""
    return files("nanochat.tokenizer").joinpath("chat_template.jinja").read_text(encoding="utf-8")


def as_batch(conversation: Any) -> tuple[bool, list[Any]]:
    """Whether `conversation` is a list of conversations, and that list (of one, if not)."""
    if not isinstance(conversation, (list, tuple)):
        raise UserError(f"a conversation must be a list of messages, got {type(conversation).__name__}")
    first = conversation[0] if conversation else None
    is_batch = isinstance(first, (list, tuple)) or hasattr(first, "messages")
    conversations = [getattr(one, "messages", one) for one in conversation] if is_batch else [conversation]
    for message in itertools.chain(*conversations):
        if not isinstance(message, Mapping):
            raise UserError(f'a message must be {{"role": ..., "content": ...}}, got {message!r:.80}')
    return is_batch, conversations


def render(**arguments: Any) -> tuple[list[str], list[list[tuple[int, int]]]]:
    """The text of each conversation and, where a mask is asked for, the character spans of its generation blocks.

    `arguments` are those of Transformers' `render_jinja_template`.

    Raises:
        UserError: the template refuses the conversation.
    """
    with _template_lock:
        try:
            rendered: Any = render_jinja_template(**arguments)
        except jinja2.TemplateError as error:
            raise UserError(f"the conversation does not fit the chat template: {error}") from error
    return rendered


def tokens_in_spans(offsets: list[tuple[int, int]], text: str, spans: list[tuple[int, int]]) -> list[int]:
    """1 for every token that has a character in one of `spans`, else 0; padding has the offsets (0, 0)."""
    inside = bytearray(len(text))
    for start, end in spans:
        end = min(end, len(text))  # continue_final_message cuts the text inside its last span
        inside[start:end] = b"\x01" * (end - start)
    return [int(1 in inside[start:end]) for start, end in offsets]
