"""What a conversation is, and the check every conversation passes before anything learns from it."""

from typing import Literal, TypedDict

from nanochat.common import UserError


class Part(TypedDict):
    """A piece of a message; the tool's two kinds stand in assistant messages only."""

    type: Literal["text", "python", "python_output"]
    text: str


class Message(TypedDict):
    """One turn: who speaks, and what, as a string or in parts."""

    role: Literal["system", "user", "assistant"]
    content: str | list[Part]


Conversation = list[Message]


def check_conversation(messages: object, where: str) -> None:
    """Raise a `UserError` that names `where` ("chats.jsonl line 12") unless `messages` can be trained on.

    A conversation is a list of `{"role", "content"}`: an optional leading system message, then user and
    assistant in turns, the assistant last. Content is a string, or a list of parts `{"type", "text"}`.
    """
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: a conversation is a non-empty list of messages, got {_short(messages)}.")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise UserError(
                f"{where}, message {number}: a message must be an object with `role` and `content`,"
                f" got {_short(message)}."
            )
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    skipped = len(messages) - len(turns)
    for index, message in enumerate(turns):
        expected = "assistant" if index % 2 else "user"
        if message["role"] != expected:
            raise UserError(
                f"{where}, message {index + skipped + 1}: expected role {expected!r},"
                f" got {_short(message['role'])}; user and assistant take turns."
            )
    if len(turns) % 2 or not turns:
        raise UserError(f"{where}: the last message must be the assistant's: a reply to learn from.")
    for number, message in enumerate(messages, 1):
        _check_content(message["content"], message["role"], f"{where}, message {number}")


def _check_content(content: object, role: str, where: str) -> None:
    if isinstance(content, str):
        if not content.strip():
            raise UserError(f"{where}: the {role}'s content is empty; remove the message or fill it.")
        return
    if not isinstance(content, list) or not content:
        raise UserError(f"{where}: content is a string or a non-empty list of parts, got {_short(content)}.")
    kinds = ("text", "python", "python_output") if role == "assistant" else ("text",)
    for number, part in enumerate(content, 1):
        if not isinstance(part, dict) or part.get("type") not in kinds:
            raise UserError(
                f"{where}, part {number}: a part of the {role}'s must be an object with `text` and a `type`"
                f" of {', '.join(kinds)}, got {_short(part)}."
            )
        # A tool may print nothing; every other part has to say something.
        if not isinstance(part.get("text"), str) or not (part["text"] or part["type"] == "python_output"):
            raise UserError(f"{where}, part {number}: `text` must be a non-empty string, got {_short(part)}.")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
