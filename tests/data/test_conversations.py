import pytest

from nanochat.common import UserError
from nanochat.data.conversations import check_conversation

ASK = {"role": "user", "content": "2+2?"}
REPLY = {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {
    "role": "assistant",
    "content": [
        {"type": "text", "text": "Let me see. "},
        {"type": "python", "text": "2+2"},
        {"type": "python_output", "text": ""},
        {"type": "text", "text": "4"},
    ],
}


@pytest.mark.parametrize(
    "messages",
    [
        [ASK, REPLY],
        [SYSTEM, ASK, REPLY, ASK, TOOL],
        [{"role": "user", "content": [{"type": "text", "text": "2+2?"}]}, REPLY],
        [{**ASK, "name": "Ann"}, REPLY],
    ],
)
def test_good_conversations_pass(messages):
    check_conversation(messages, "chats.jsonl line 1")


def replying(content):
    return [ASK, {"role": "assistant", "content": content}]


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        (None, "non-empty list of messages, got None"),
        ([], "non-empty list of messages, got []"),
        ({"role": "user"}, "non-empty list of messages"),
        ([ASK, "4"], "message 2: a message must be an object with `role` and `content`, got '4'"),
        ([{"role": "user"}, REPLY], "message 1: a message must be"),
        ([ASK, {"from": "gpt", "value": "4"}], "message 2: a message must be"),
        ([REPLY, ASK], "message 1: expected role 'user', got 'assistant'"),
        ([ASK, ASK, REPLY], "message 2: expected role 'assistant', got 'user'"),
        ([SYSTEM, REPLY], "message 2: expected role 'user'"),
        ([ASK, REPLY, SYSTEM, ASK, REPLY], "message 3: expected role 'user', got 'system'"),
        ([{"role": "human", "content": "hi"}, REPLY], "message 1: expected role 'user', got 'human'"),
        ([{"role": ["user"], "content": "hi"}, REPLY], "message 1: expected role 'user'"),
        ([ASK], "the last message must be the assistant's"),
        ([SYSTEM], "the last message must be the assistant's"),
        ([ASK, REPLY, ASK], "the last message must be the assistant's"),
        (replying(""), "message 2: the assistant's content is empty"),
        (replying(" \n"), "message 2: the assistant's content is empty"),
        (replying(None), "message 2: content is a string or a non-empty list of parts, got None"),
        (replying([]), "message 2: content is a string or a non-empty list of parts, got []"),
        (replying(["4"]), "message 2, part 1: "),
        (replying([{"type": "image", "text": "4"}]), "text, python, python_output, got"),
        (replying([{"type": ["text"], "text": "4"}]), "text, python, python_output, got"),
        (replying([{"type": "text", "text": 4}]), "part 1: `text` must be a non-empty string"),
        (replying([{"type": "python", "text": ""}]), "part 1: `text` must be a non-empty string"),
        (
            [{"role": "user", "content": [{"type": "python", "text": "1"}]}, REPLY],
            "message 1, part 1: a part of the user's must be an object with `text` and a `type` of text, got",
        ),
    ],
)
def test_wrong_ones_are_told_with_place_and_reason(messages, told):
    with pytest.raises(UserError) as error:
        check_conversation(messages, "chats.jsonl line 12")
    assert str(error.value).startswith("chats.jsonl line 12")
    assert told in str(error.value)


def test_what_is_quoted_stays_short():
    with pytest.raises(UserError) as error:
        check_conversation("x" * 100_000, "chats.jsonl line 12")
    assert len(str(error.value)) < 200
