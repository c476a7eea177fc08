"""NanoChat's tokenizer: byte-level BPE, nine control tokens that only a chat template can write, and a bulk path."""

import os
import re
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import tiktoken
from tokenizers import normalizers
from transformers import AutoTokenizer, BatchEncoding, NanoChatConfig, PreTrainedTokenizerFast
from transformers.utils import get_json_schema

from nanochat.common import UserError
from nanochat.tokenizer.byte_level import Ranks, backend_of, pattern_of, ranks_of
from nanochat.tokenizer.chat import as_batch, default_chat_template, render, tokens_in_spans
from nanochat.tokenizer.shield import break_look_alikes, unused_marker

SPECIAL_TOKENS: tuple[str, ...] = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)

# GPT-4's pattern, but numbers in groups of one or two digits: small vocabularies have no room for a thousand numbers.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

# Where documents are encoded in one go, stands for the <|bos|> of each: no character, by the Unicode standard.
_DOCUMENT_START = "\ufdd0"

# tiktoken's regex engine backtracks once per character of a run of white space and panics at a million.
_LONGEST_BULK_WHITESPACE = 100_000

# A Transformers tokenizer switches its one Rust backend between "parse control tokens" and "take them as text" from
# call to call. The lock keeps threads out of each other's settings.
_backend_lock = threading.RLock()


class NanoChatTokenizer(PreTrainedTokenizerFast):
    """Byte-level BPE tokenizer of NanoChat, a Transformers fast tokenizer.

    Text is data: `<|assistant_start|>` in a string is a handful of ordinary tokens, in `tokenizer(...)`, `encode`,
    `tokenize` and inside the messages of `apply_chat_template`. Control tokens come from the chat template, from the
    `<|bos|>` that begins every text (`add_special_tokens=False` leaves it out), or from an explicit
    `split_special_tokens=False` in a call. Any Unicode string round-trips through `encode` and `decode`.

    Make one with `train_tokenizer`, `from_pretrained` or `from_ranks`.
    """

    padding_side = "left"  # prompts of a batch must end together for generation

    def __init__(self, **kwargs: Any) -> None:
        # Not taken from a saved folder, which must not be able to open user text to control tokens.
        kwargs.pop("split_special_tokens", None)
        defaults = {
            "bos_token": "<|bos|>",
            "eos_token": "<|assistant_end|>",
            # The nine have none for padding. <|bos|> does no harm: padding is masked out of attention and loss, and no
            # target is a <|bos|> within a conversation, so masking every pad id loses nothing (eos would be lost).
            "pad_token": "<|bos|>",
            "extra_special_tokens": [t for t in SPECIAL_TOKENS if t not in ("<|bos|>", "<|assistant_end|>")],
            "add_bos_token": True,
            "padding_side": self.padding_side,
            "model_max_length": 2048,
            "model_input_names": ["input_ids", "attention_mask"],
            "chat_template": default_chat_template(),
        }
        super().__init__(**(defaults | kwargs))
        # Set here, not passed on, so that it isn't saved: Transformers' own class has to parse rendered templates.
        self.split_special_tokens = True
        self.backend_tokenizer.encode_special_tokens = True

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Have `tokenizer.json` loaded as it stands, where Transformers would rebuild it without its split pattern."""
        return kwargs

    @classmethod
    def from_ranks(cls, ranks: Ranks, pattern: str = SPLIT_PATTERN) -> "NanoChatTokenizer":
        """Make a tokenizer from the bytes and id of every token (lower ids merge first); special tokens come last.

        Raises:
            UserError: `ranks` is no byte-level BPE vocabulary with ids from 0 on.
        """
        return cls(tokenizer_object=backend_of(ranks, pattern, SPECIAL_TOKENS))

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> BatchEncoding:  # type: ignore[override]
        # The one door through which Transformers encodes: `__call__`, `encode`, `tokenize`, single, batch, pairs.
        check_text(text)
        if text_pair is not None:
            check_text(text_pair)
        with _backend_lock:
            try:
                return super()._encode_plus(text, text_pair, **kwargs)
            finally:
                self.backend_tokenizer.encode_special_tokens = self.split_special_tokens

    def encode_ordinary_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts at once: no `<|bos|>`, no control tokens, no masks, only ids.

        Same ids as `encode(text, add_special_tokens=False)`, through tiktoken and one thread per core: 8.6 MB/s against
        1.9 MB/s on two cores (stories, vocabulary of 8,192).

        Raises:
            UserError: a text is not a string or has a lone surrogate.
        """
        if isinstance(texts, str):
            raise UserError("encode_ordinary_batch takes a list of strings, got one string; put it into a list")
        for text in texts:
            check_text(text)
        bulk = [text if _longest_whitespace(text) < _LONGEST_BULK_WHITESPACE else "" for text in texts]
        ids = self._bulk_encoder.encode_ordinary_batch(bulk, num_threads=os.cpu_count() or 1)
        return [
            row if text is taken else self.encode(text, add_special_tokens=False, verbose=False)
            for row, text, taken in zip(ids, texts, bulk)
        ]

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`<|bos|>` and then the ids of `encode_ordinary_batch` for each text: arrays of uint32.

        In one call of tiktoken's, which holds no lock of Python's meanwhile: for the threads of a pool.

        Raises:
            UserError: a text has a lone surrogate.
        """
        if any(_DOCUMENT_START in text or _longest_whitespace(text) >= _LONGEST_BULK_WHITESPACE for text in texts):
            rows = self.encode_ordinary_batch(texts)
            return [np.array([self.bos_token_id, *row], np.uint32) for row in rows]
        try:
            ids = self._bulk_encoder.encode_to_numpy(
                "".join(_DOCUMENT_START + text for text in texts), allowed_special={_DOCUMENT_START}
            )
        except UnicodeEncodeError:
            check_text(list(texts))
            raise
        return np.split(ids, np.flatnonzero(ids == self.bos_token_id)[1:]) if len(texts) else []

    @cached_property
    def _bulk_encoder(self) -> tiktoken.Encoding:
        backend = self.backend_tokenizer
        return tiktoken.Encoding(
            "nanochat",
            pat_str=pattern_of(backend),
            mergeable_ranks=ranks_of(backend),
            special_tokens={_DOCUMENT_START: self.bos_token_id},
        )

    def token_bytes(self) -> np.ndarray:
        """How many UTF-8 bytes each token stands for: int32, shape (V,) with V = len(self); 0 for control tokens."""
        lengths = np.zeros(len(self), dtype=np.int32)
        for token, rank in ranks_of(self.backend_tokenizer).items():
            lengths[rank] = len(token)
        return lengths

    def apply_chat_template(
        self,
        conversation: Any,
        tools: list[Any] | None = None,
        documents: list[dict[str, str]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        sanitize_control_tokens: bool = True,
        padding: Any = False,
        truncation: Any = False,
        max_length: int | None = None,
        return_tensors: Any = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render a conversation, or a list of them, and encode it; arguments and results as in Transformers.

        Only the template writes control tokens. What stands in messages, tools, documents and `kwargs` is ordinary
        text, always: `sanitize_control_tokens` is taken for compatibility and changes nothing. `assistant_masks`
        holds 1 for every token of a `{% generation %}` block, also after truncation on either side.

        10,000 short conversations with masks take 4 s one by one and 2 s in one call, on one core.

        Raises:
            UserError: a wrong role, order, part or content (from the template), or inputs that are not plain data.
        """
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise UserError("return_assistant_tokens_mask=True needs tokenize=True and return_dict=True")
        if continue_final_message and add_generation_prompt:
            raise UserError("continue_final_message and add_generation_prompt exclude each other; leave one out")
        chat_template = self.get_chat_template(chat_template, tools)
        is_batch, conversations = as_batch(conversation)
        inputs: Any = [
            conversations,
            [tool if isinstance(tool, dict) else get_json_schema(tool) for tool in tools] if tools else tools,
            documents,
            kwargs,
        ]
        marker = unused_marker([inputs, chat_template])
        if tokenize:
            control_tokens = tuple(token.content for token in self.added_tokens_decoder.values() if token.special)
            inputs = break_look_alikes(inputs, control_tokens, marker)
        conversations, tools, documents, kwargs = inputs
        texts, spans = render(
            conversations=conversations,
            tools=tools,
            documents=documents,
            chat_template=chat_template,
            return_assistant_tokens_mask=return_assistant_tokens_mask,
            continue_final_message=continue_final_message,
            add_generation_prompt=add_generation_prompt,
            **{**self.special_tokens_map, **kwargs},
        )
        if not tokenize:
            return texts if is_batch else texts[0]
        encoded = self._encode_rendered(
            texts if is_batch else texts[0],
            marker,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
            **(tokenizer_kwargs or {}),
        )
        if not return_dict:
            return encoded["input_ids"]
        if return_assistant_tokens_mask:
            offsets = [encoding.offsets for encoding in encoded.encodings or ()]
            masks = [tokens_in_spans(*row) for row in zip(offsets, texts, spans, strict=True)]
            encoded["assistant_masks"] = masks if is_batch or return_tensors else masks[0]
            encoded.convert_to_tensors(return_tensors)
        return encoded

    def _encode_rendered(self, texts: Any, marker: str, **options: Any) -> BatchEncoding:
        """Encode what a template rendered: its control tokens are parsed first, then the markers are dropped."""
        with _backend_lock:
            self.backend_tokenizer.normalizer = normalizers.Replace(marker, "")
            try:
                return self(texts, add_special_tokens=False, split_special_tokens=False, **options)
            finally:
                self.backend_tokenizer.normalizer = None


def check_text(text: Any) -> None:
    """Raise `UserError` unless `text` is a Unicode string, or lists of such."""
    if isinstance(text, (list, tuple)):
        for one in text:
            check_text(one)
    elif not isinstance(text, str):
        raise UserError(f"text must be a string, got {type(text).__name__}: {text!r:.80}")
    else:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"text has a lone surrogate {text[error.start]!r} at character {error.start}, which is no Unicode "
                'character; read the source with errors="replace"'
            ) from error


def _longest_whitespace(text: str) -> int:
    if len(text) < _LONGEST_BULK_WHITESPACE:
        return 0
    return max((match.end() - match.start() for match in re.finditer(r"\s+", text)), default=0)


# AutoTokenizer goes by the class name that our folders carry in tokenizer_config.json. Transformers' own configuration
# only serves as the key here: this room does not know the model's.
AutoTokenizer.register(NanoChatConfig, NanoChatTokenizer, exist_ok=True)
