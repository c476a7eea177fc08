import pytest

from nanochat.common import UserError
from nanochat.tokenizer.shield import break_look_alikes, unused_marker


def test_the_marker_is_one_that_nobody_wrote():
    assert unused_marker(["plain", {"key": ("text", 1, None, True, 2.5)}]) == "\ue000"
    assert unused_marker([{"\ue000": "\ue001"}, ("\ue003",)]) == "\ue002"
    every_one_of_the_first_area = "".join(map(chr, range(0xE000, 0xF900)))
    assert unused_marker([every_one_of_the_first_area]) == "\U000f0000"
    everything = "".join(chr(c) for c in range(0xE000, 0x110000))
    with pytest.raises(UserError, match="every private-use character"):
        unused_marker([everything])


def test_look_alikes_are_broken_wherever_they_stand_or_may_begin():
    inputs = {"a<|b|>": ["x<|bos|>", "<", ("1 < 2", 5, None)], "n": "<|"}
    assert break_look_alikes(inputs, ("<|bos|>", "<|end|>", "[X]"), "M") == {
        "a<M|b|>": ["x<M|bos|>", "<M", ["1 < 2", 5, None]],
        "n": "<M|",
    }
    assert break_look_alikes("[X] [Y] [", ("<|bos|>", "[X]"), "M") == "[MX] [Y] [M"


def test_objects_that_could_hide_text_are_refused():
    with pytest.raises(UserError, match=r"plain data .* got object"):
        unused_marker([{"content": object()}])
