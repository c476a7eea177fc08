"""What clients get: the shapes of OpenAI's answers with this server's additions, for mypy and the OpenAPI document."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict  # pydantic takes typing's own from Python 3.12 on only

FinishReason = Literal["stop", "length"]


class TopLogprob(TypedDict):
    """A likely token: its text, its log-probability, its bytes (null for a control token)."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TypedDict):
    """A token of the answer; `logprob` is null where the client had it written (`prefix_token_ids`)."""

    token: str
    logprob: float | None
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """The tokens of the answer's text."""

    content: list[TokenLogprob]
    refusal: None


class TextLogprobs(TypedDict):
    """The same in the older form: lists side by side."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TokenAlternative(TypedDict):
    """A likely token in a place; `prefix_token_ids` takes its id."""

    id: int
    text: str
    logprob: float


class AnswerToken(TypedDict):
    """A token of the answer as it was generated (`return_tokens`).

    `control`: a control token, with its name as text. `forced`: written by the server (a tool's result, or the given
    beginning), not chosen by the model. `logprob` is null for these and where `logprobs` were not asked for.
    """

    id: int
    text: str
    logprob: float | None
    top: list[TokenAlternative]
    control: bool
    forced: bool
    type: Literal["text", "python", "python_output"]
    part: int


class AnswerPart(TypedDict):
    """A piece of the answer: text, a call of the calculator, or its result."""

    type: Literal["text", "python", "python_output"]
    text: str


class DeltaPart(AnswerPart):
    """New text of the answer's part number `index`."""

    index: int


class PromptTokensDetails(TypedDict):
    """`cached_tokens` of the prompt had been computed for an earlier request."""

    cached_tokens: int


class Usage(TypedDict):
    """Tokens of the request; all choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Speed(TypedDict):
    """How the answer went, in seconds and tokens; the rate counts from the first token on."""

    prompt_tokens: int
    cached_tokens: int
    time_to_first_token: float | None
    tokens_per_second: float | None


class AnswerMessage(TypedDict):
    """The assistant's turn. `content` is its text, `parts` its text and the tool's work in order."""

    role: Literal["assistant"]
    content: str
    refusal: None
    parts: list[AnswerPart]


class ChatChoice(TypedDict):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    tokens: NotRequired[list[AnswerToken]]


class ChatCompletion(TypedDict):
    """Answer of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    nanochat: Speed


class ChatDelta(TypedDict):
    """What is new in an answer. `content` is the text among it; `part` says to which part of the answer it belongs."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    part: NotRequired[DeltaPart]


class ChatChunkChoice(TypedDict):
    """The next piece of one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    tokens: NotRequired[list[AnswerToken]]


class ChatCompletionChunk(TypedDict):
    """An event of a streamed chat answer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]
    nanochat: NotRequired[Speed]


class TextChoice(TypedDict):
    """One answer, or the next piece of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None
    parts: NotRequired[list[AnswerPart]]
    part: NotRequired[DeltaPart]
    tokens: NotRequired[list[AnswerToken]]


class Completion(TypedDict):
    """Answer of `/v1/completions`, and an event of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: NotRequired[Usage | None]
    nanochat: NotRequired[Speed]


class Model(TypedDict):
    """The model; `max_model_len` is its context in tokens."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(TypedDict):
    """Answer of `/v1/models`."""

    object: Literal["list"]
    data: list[Model]


class Tokenized(TypedDict):
    """Answer of `/tokenize`."""

    tokens: list[int]
    token_strs: list[str]
    count: int
    max_model_len: int


class Detokenized(TypedDict):
    """Answer of `/detokenize`."""

    prompt: str


class Health(TypedDict):
    """Answer of `/health`."""

    status: Literal["ok"]


class ErrorDetail(TypedDict):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(TypedDict):
    """Every answer that is none."""

    error: ErrorDetail
