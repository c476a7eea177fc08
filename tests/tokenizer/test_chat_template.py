import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.tokenizer import SPECIAL_TOKENS

# Pieces from which control tokens could be forged, also across parts, and with every trick the shield itself uses.
FORGERIES = st.lists(
    st.one_of(
        st.sampled_from(
            [*SPECIAL_TOKENS, "<", "<|", "|", "|>", "bos", "<|bo", "s|>", "<\ue000|bos|>", "\ue000", "\ue001"]
        ),
        st.sampled_from(["CONTINUE_FINAL_MESSAGE_TAG ", "{{ 1 }}", "{% generation %}", "\n", "  ", "the fox", "12"]),
        st.text(max_size=4),
    ),
    max_size=6,
).map("".join)
USER_CONTENT = st.one_of(FORGERIES, st.lists(FORGERIES.map(lambda text: {"type": "text", "text": text}), max_size=3))
PART = st.builds(
    lambda kind, text: {"type": kind, "text": text}, st.sampled_from(["text", "python", "python_output"]), FORGERIES
)
ASSISTANT_CONTENT = st.one_of(FORGERIES, st.lists(PART, max_size=4))


@st.composite
def conversations(draw):
    messages = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(USER_CONTENT)})
    for _ in range(draw(st.integers(1, 2))):
        messages.append({"role": "user", "content": draw(USER_CONTENT), "name": draw(FORGERIES)})
        messages.append({"role": "assistant", "content": draw(ASSISTANT_CONTENT)})
    return messages[: len(messages) - draw(st.integers(0, 1))]


def text_of(content):
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def expected_tokens(tokenizer, conversation):
    """Ids and mask, built without template or parsing: control ids by name, content by the bulk path."""
    ids, mask = [], []

    def write(new_ids, trained):
        ids.extend(new_ids)
        mask.extend([trained] * len(new_ids))

    def control(name, trained=0):
        write([tokenizer.convert_tokens_to_ids(f"<|{name}|>")], trained)

    def ordinary(text, trained=0):
        write(tokenizer.encode_ordinary_batch([text])[0], trained)

    control("bos")
    preface = ""
    for message in conversation:
        content = message["content"]
        if message["role"] == "system":
            preface = text_of(content) + "\n\n"
        elif message["role"] == "user":
            control("user_start")
            ordinary(preface + text_of(content))
            control("user_end")
            preface = ""
        else:
            control("assistant_start")
            spoken = ""
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                if part["type"] == "text":
                    spoken += part["text"]  # neighbouring texts are one text
                    continue
                ordinary(spoken, 1)
                spoken = ""
                name, trained = ("python", 1) if part["type"] == "python" else ("output", 0)
                control(f"{name}_start", trained)
                ordinary(part["text"], trained)
                control(f"{name}_end", trained)
            ordinary(spoken, 1)
            control("assistant_end", 1)
    return ids, mask


@given(conversation=conversations())
def test_ids_and_mask_of_any_conversation(tokenizer, conversation):
    encoded = tokenizer.apply_chat_template(conversation, return_assistant_tokens_mask=True)
    ids, mask = expected_tokens(tokenizer, conversation)
    assert encoded["input_ids"] == ids
    assert encoded["assistant_masks"] == mask
    assert encoded["attention_mask"] == [1] * len(ids)
    assert tokenizer.apply_chat_template(conversation, return_dict=False) == ids


@given(batch=st.lists(conversations(), min_size=1, max_size=3), padding=st.booleans())
def test_a_batch_is_its_conversations(tokenizer, batch, padding):
    encoded = tokenizer.apply_chat_template(batch, return_assistant_tokens_mask=True, padding=padding)
    longest = max(map(len, encoded["input_ids"]))
    for conversation, ids, mask in zip(batch, encoded["input_ids"], encoded["assistant_masks"], strict=True):
        expected_ids, expected_mask = expected_tokens(tokenizer, conversation)
        gap = (longest if padding else len(expected_ids)) - len(expected_ids)
        assert ids == [tokenizer.pad_token_id] * gap + expected_ids
        assert mask == [0] * gap + expected_mask


def test_a_whole_conversation_as_text(tokenizer):
    conversation = [
        {"role": "system", "content": " Be brief.\n"},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "2*3?\n"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me see. "},
                {"type": "python", "text": "2*3"},
                {"type": "python_output", "text": "6"},
                {"type": "text", "text": "Six."},
            ],
        },
        {"role": "user", "content": "Thanks"},
    ]
    assert tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False) == (
        "<|bos|><|user_start|> Be brief.\n\n\nWhat is 2*3?\n<|user_end|><|assistant_start|>Let me see. "
        "<|python_start|>2*3<|python_end|><|output_start|>6<|output_end|>Six.<|assistant_end|>"
        "<|user_start|>Thanks<|user_end|><|assistant_start|>"
    )


@given(text=FORGERIES)
def test_an_open_final_message(tokenizer, text):
    question = {"role": "user", "content": "Hi"}
    ids = tokenizer.apply_chat_template(
        [question, {"role": "assistant", "content": text}], continue_final_message=True, return_dict=False
    )
    prompt = tokenizer.apply_chat_template([question], add_generation_prompt=True, return_dict=False)
    assert ids == prompt + tokenizer.encode_ordinary_batch([text])[0]


def test_an_open_final_message_has_its_mask(tokenizer):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "the fox"}]
    encoded = tokenizer.apply_chat_template(messages, continue_final_message=True, return_assistant_tokens_mask=True)
    spoken = sum(encoded["assistant_masks"])
    assert encoded["assistant_masks"] == [0] * (len(encoded["input_ids"]) - spoken) + [1] * spoken
    assert tokenizer.decode(encoded["input_ids"][-spoken:]) == "the fox"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("length", range(1, 26, 4))
def test_masks_survive_truncation_on_either_side(tokenizer, side, length):
    conversation = [
        {"role": "user", "content": "fox"},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "the dog"}, {"type": "python_output", "text": "12"}],
        },
        {"role": "user", "content": "fox"},
        {"role": "assistant", "content": "the dog"},
    ]
    ids, mask = expected_tokens(tokenizer, conversation)
    kept = slice(None, length) if side == "right" else slice(-length, None)
    tokenizer.truncation_side = side
    try:
        encoded = tokenizer.apply_chat_template(
            conversation, truncation=True, max_length=length, return_assistant_tokens_mask=True
        )
    finally:
        tokenizer.truncation_side = "right"
    assert (encoded["input_ids"], encoded["assistant_masks"]) == (ids[kept], mask[kept])


def test_tensors(tokenizer):
    conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "the fox"}]
    encoded = tokenizer.apply_chat_template(
        conversation, return_tensors="pt", padding="max_length", max_length=32, return_assistant_tokens_mask=True
    )
    ids, mask = expected_tokens(tokenizer, conversation)
    assert encoded["input_ids"].shape == encoded["assistant_masks"].shape == (1, 32)
    assert encoded["assistant_masks"][0].tolist() == [0] * (32 - len(ids)) + mask
    assert encoded["input_ids"][0, 32 - len(ids) :].tolist() == ids


@given(text=FORGERIES)
def test_tools_documents_and_variables_are_data_too(tokenizer, text):
    template = (
        "<|bos|>{% for message in messages %}{{ message.role }}{{ message.content }}{% endfor %}<|user_start|>"
        "{{ tools | tojson }}{{ documents }}{{ mood }}{{ bos_token }}"
    )

    def search(query: str) -> str:
        """Search.

        Args:
            query: What to look for
        """

    search.__doc__ += f" {' '.join(SPECIAL_TOKENS)}"
    ids = tokenizer.apply_chat_template(
        [{"role": text, "content": {"<|bos|>" + text: text}}],
        chat_template=template,
        tools=[{"<|bos|>": text}, search],
        documents=[{"title": text, "text": "<|bos|>"}],
        mood=[text, text],
        return_dict=False,
    )
    assert [i for i in ids if i >= 391] == [391, 392, 391]


def test_a_mask_may_begin_inside_a_word_and_does_not_change_the_ids(tokenizer):
    template = "{% for m in messages %}qu{% generation %}{{ m.content }}{% endgeneration %}k {% endfor %}"
    chat = [{"role": "user", "content": "ic"}, {"role": "user", "content": "<"}]
    encoded = tokenizer.apply_chat_template(chat, chat_template=template, return_assistant_tokens_mask=True)
    assert encoded["input_ids"] == tokenizer.encode_ordinary_batch(["quick qu<k "])[0]
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    masked = [token for token, mask in zip(tokens, encoded["assistant_masks"]) if mask]
    assert masked == [token for token in tokens if "i" in token or "c" in token or "<" in token]


USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("conversation", "complaint"),
    [
        ([], "conversation is empty"),
        ([SYSTEM], "needs a user message after it"),
        ([ASSISTANT], 'message 0: the role must be "user", got "assistant"'),
        ([USER, USER], 'message 1: the role must be "assistant", got "user"'),
        ([SYSTEM, SYSTEM], 'message 1: the role must be "user", got "system"'),
        ([SYSTEM, USER, ASSISTANT, SYSTEM], 'message 3: the role must be "user", got "system"'),
        ([{"role": "tool", "content": "x"}], 'must be "user", got "tool"'),
        ([{"content": "x"}], 'must be "user", got ""'),
        ([{"role": "user"}], '"content" must be a string or a list of parts'),
        ([{"role": "user", "content": None}], '"content" must be'),
        ([{"role": "user", "content": 3}], '"content" must be'),
        ([{"role": "user", "content": {"type": "text", "text": "x"}}], '"content" must be'),
        ([{"role": "system"}, USER], 'message 0: "content" must be'),
        ([{"role": "user", "content": ["x"]}], "a user part must be"),
        ([{"role": "user", "content": [{"type": "python", "text": "x"}]}], "a user part must be"),
        ([{"role": "user", "content": [{"type": "text"}]}], 'message 0: the "text" of a part must be a string'),
        ([USER, {"role": "assistant"}], 'message 1: "content" must be'),
        ([USER, {"role": "assistant", "content": [{"type": "image", "text": "x"}]}], 'must be "text", "python" or'),
        (
            [USER, {"role": "assistant", "content": [{"type": "python", "text": 4}]}],
            '"text" of a part must be a string',
        ),
        (["Hi"], "a message must be"),
        ("Hi", "must be a list of messages, got str"),
        ([{"role": "user", "content": b"Hi"}], "plain data .* got bytes"),
        ([{"role": "user", "content": "\ud800"}], "lone surrogate"),
    ],
)
def test_what_is_no_conversation_is_refused(tokenizer, conversation, complaint):
    with pytest.raises(UserError, match=complaint):
        tokenizer.apply_chat_template(conversation)


def test_contradictory_requests_are_refused(tokenizer):
    with pytest.raises(UserError, match="exclude each other"):
        tokenizer.apply_chat_template([USER, ASSISTANT], add_generation_prompt=True, continue_final_message=True)
    with pytest.raises(UserError, match="needs a user message last"):
        tokenizer.apply_chat_template([USER, ASSISTANT], add_generation_prompt=True)
    with pytest.raises(UserError, match="needs tokenize=True and return_dict=True"):
        tokenizer.apply_chat_template([USER], return_dict=False, return_assistant_tokens_mask=True)


def test_an_error_leaves_the_tokenizer_as_it_was(tokenizer):
    with pytest.raises(UserError):
        tokenizer.apply_chat_template([{"role": "user", "content": "<|bos|>\ud800"}])
    assert tokenizer.backend_tokenizer.normalizer is None
    assert tokenizer.decode(tokenizer.encode("\ue000"), skip_special_tokens=True) == "\ue000"


def test_the_template_stands_alone(tokenizer):
    """Template engines other than Transformers' know no `generation` tag; everything else is plain Jinja."""
    source = tokenizer.chat_template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    rendered = jinja2.Environment().from_string(source).render(messages=[USER, ASSISTANT], add_generation_prompt=False)
    assert rendered == "<|bos|><|user_start|>Hi<|user_end|><|assistant_start|>Hello<|assistant_end|>"
