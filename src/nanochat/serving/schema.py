"""What clients may send: OpenAI's requests as far as the engine can do what they ask, and a few extensions.

What is not written here is refused by name. The extensions (`top_k`, `min_p`, `repetition_penalty`,
`prefix_token_ids`, `return_tokens`) go into the body beside the others; OpenAI's client takes them as `extra_body`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from nanochat.data.conversations import Conversation
from nanochat.inference import SamplingParams

MAX_CHOICES = 128  # answers to one request: prompts times n
MAX_TOP_LOGPROBS = 20

# Parameters of OpenAI's that are not supported, and the values that ask for nothing beside what happens anyway.
# null asks for nothing in any of them.
ASK_FOR_NOTHING: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "metadata": (),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": (),
    "tool_choice": ("none",),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
# What OpenAI's own answers carry beside the content, empty: they come back in the next request's messages.
EMPTY_IN_MESSAGES = ("annotations", "audio", "function_call", "name", "refusal", "tool_calls")

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]  # JSON's keys are strings
StopString = Annotated[str, Field(min_length=1, max_length=1000)]


def _text_or(kind: str) -> Discriminator:
    """Tell a string from a list in a union, so that an error is about the branch the client meant."""
    return Discriminator(lambda value: "~text" if isinstance(value, str) else kind)


class Wire(BaseModel):
    """Strict: no unknown names, no strings for numbers, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class MessagePart(Wire):
    """A piece of a message; the tool's two kinds stand in assistant messages only."""

    type: Literal["text", "python", "python_output"]
    text: str


class ChatMessage(Wire):
    """One turn. An assistant's `parts`, as an answer brings them, tell more than its `content` and stand for it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: (
        Annotated[
            Annotated[str, Tag("~text")] | Annotated[list[MessagePart], Field(min_length=1), Tag("~parts")],
            _text_or("~parts"),
        ]
        | None
    ) = None
    parts: list[MessagePart] | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value or key not in EMPTY_IN_MESSAGES}

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.parts and self.role != "assistant":
            raise _refused("parts", "only an assistant's message has parts; a list of parts may stand in content")
        if self.content is None and not self.parts:
            raise _refused("content", "it is missing")
        return self


class StreamOptions(Wire):
    """Options of a streamed answer."""

    include_usage: bool | None = None


class ResponseFormat(Wire):
    """Plain text is the one format there is."""

    type: Literal["text"]


class Sampling(Wire):
    """What chat and plain completions have in common."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None
    ) = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: (
        Annotated[
            Annotated[StopString, Tag("~text")] | Annotated[list[StopString], Field(max_length=16), Tag("~list")],
            _text_or("~list"),
        ]
        | None
    ) = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    prefix_token_ids: list[TokenId] | None = None
    return_tokens: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_for_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data

        def asks(name: str, value: Any) -> bool:
            return name in cls.model_fields or name not in ASK_FOR_NOTHING or not _is_any(value, ASK_FOR_NOTHING[name])

        return {name: value for name, value in data.items() if asks(name, value)}

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise _refused("stream_options", "it is for streamed answers and needs stream=true")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def top_count(self) -> int | None:
        """Return how many likeliest tokens to tell beside each; None: no log-probabilities at all."""
        raise NotImplementedError

    def params(self, max_new_tokens: int) -> SamplingParams:
        """Return what the engine is asked for; `max_new_tokens` counts where the client set no limit.

        Raises:
            UserError: for what only the engine can judge.
        """
        return SamplingParams(
            max_new_tokens=self.max_tokens or max_new_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,  # OpenAI's default
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias={int(id): bias for id, bias in self.logit_bias.items()} if self.logit_bias else None,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            n=self.n or 1,
            logprobs=self.top_count(),
        )


class ChatRequest(Sampling):
    """Body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise _refused("top_logprobs", "it needs logprobs=true")
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                raise _refused("max_tokens", "max_completion_tokens means the same but differs: send one of the two")
            self.max_tokens = self.max_completion_tokens
        return self

    def conversation(self) -> Conversation:
        """Return the messages as the engine takes them."""
        return conversation(self.messages)

    def top_count(self) -> int | None:
        """Return how many likeliest tokens to tell beside each; None: no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


TokenIds = Annotated[list[TokenId], Field(min_length=1)]


def _kind_of_prompt(value: Any) -> str:
    """Tell the four kinds of prompts apart by the first item."""
    if not isinstance(value, list):
        return "~text"
    first = value[0] if value else None
    return "~texts" if isinstance(first, str) else "~lists" if isinstance(first, list) else "~ids"


class CompletionRequest(Sampling):
    """Body of `/v1/completions`: one prompt or several, each a text or token ids."""

    prompt: Annotated[
        Annotated[str, Tag("~text")]
        | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES), Tag("~texts")]
        | Annotated[TokenIds, Tag("~ids")]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_CHOICES), Tag("~lists")],
        Discriminator(_kind_of_prompt),
    ]
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        if len(self.prompts()) * (self.n or 1) > MAX_CHOICES:
            raise _refused("n", f"at most {MAX_CHOICES} answers to one request, prompts times n")
        return self

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts, each a text or token ids."""
        kind = _kind_of_prompt(self.prompt)
        return list(self.prompt) if kind in ("~texts", "~lists") else [self.prompt]  # type: ignore[arg-type, list-item]

    def top_count(self) -> int | None:
        """Return how many likeliest tokens to tell beside each; None: no log-probabilities at all."""
        return self.logprobs


class TokenizeRequest(Wire):
    """Body of `/tokenize`: a text, or messages as the chat template writes them."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise _refused("prompt", "it or messages is needed, one of the two")
        return self


class DetokenizeRequest(Wire):
    """Body of `/detokenize`."""

    model: str | None = None
    tokens: list[TokenId]


def conversation(messages: list[ChatMessage]) -> Conversation:
    """Return messages as the engine takes them."""
    turns: list[Any] = []
    for message in messages:
        content = message.parts or message.content
        turns.append(
            {
                "role": "system" if message.role == "developer" else message.role,
                "content": content if isinstance(content, str) else [part.model_dump() for part in content or ()],
            }
        )
    return turns


def _is_any(value: Any, of: tuple[Any, ...]) -> bool:
    """Whether `value` is None or one of `of`, in type too: True is not 1."""
    return value is None or any(type(value) is type(one) and value == one for one in of)


def _refused(param: str, message: str) -> PydanticCustomError:
    """A complaint of a whole object's about one of its fields."""
    return PydanticCustomError("refused", "{message}", {"message": message, "param": param})
