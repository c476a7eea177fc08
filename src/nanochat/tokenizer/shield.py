"""Keep what looks like a control token in somebody's text from being taken for the chat template's own.

Before rendering, a marker character goes into every look-alike (`<|bos|>` becomes `<` + marker + `|bos|>`), so that
after rendering only the template's own control tokens still match. The tokenizer drops the marker when it encodes.
The marker is a private-use character that occurs nowhere in the inputs: nobody can write it beforehand.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from nanochat.common import UserError

# Unicode's three private-use areas.
_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


def unused_marker(inputs: Any) -> str:
    """A private-use character that stands in no string of `inputs` (nested lists, mappings and plain values).

    Raises:
        UserError: a value is no plain data, or the inputs use up all 137,468 private-use characters.
    """
    used = set().union(*(string for string in _strings(inputs) if not string.isascii()))
    for code_point in itertools.chain(*_PRIVATE_USE):
        if chr(code_point) not in used:
            return chr(code_point)
    raise UserError("the conversation uses every private-use character of Unicode; take some of them out")


def break_look_alikes(inputs: Any, control_tokens: tuple[str, ...], marker: str) -> Any:
    """Copy `inputs` with `marker` behind each character at which a control token may begin.

    That includes the last character of a string, because a template may put two strings side by side.
    """
    if isinstance(inputs, str):
        return _beginnings(control_tokens).sub(rf"\g<0>{marker}", inputs)
    if isinstance(inputs, Mapping):
        return {
            break_look_alikes(key, control_tokens, marker): break_look_alikes(value, control_tokens, marker)
            for key, value in inputs.items()
        }
    if isinstance(inputs, (list, tuple)):
        return [break_look_alikes(value, control_tokens, marker) for value in inputs]
    return inputs


@lru_cache
def _beginnings(control_tokens: tuple[str, ...]) -> re.Pattern[str]:
    """First characters of control tokens where the second one, or the end of the string, follows."""
    pairs = {(token[0], token[1:2]) for token in control_tokens}
    return re.compile("|".join(rf"{re.escape(first)}(?={re.escape(second)}|\Z)" for first, second in sorted(pairs)))


def _strings(inputs: Any) -> Iterator[str]:
    if isinstance(inputs, str):
        yield inputs
    elif isinstance(inputs, Mapping):
        for key, value in inputs.items():
            yield from _strings(key)
            yield from _strings(value)
    elif isinstance(inputs, (list, tuple)):
        for value in inputs:
            yield from _strings(value)
    elif not (inputs is None or isinstance(inputs, (bool, int, float))):
        # An object of another kind could hold strings that we can't see.
        raise UserError(
            "a conversation and its template arguments must be plain data (strings, numbers, lists, dictionaries), "
            f"got {type(inputs).__name__}: {inputs!r:.80}"
        )
