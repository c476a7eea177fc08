"""The engine: many requests at once, step by step, with a cache that remembers and the calculator in the loop.

A step is: schedule (who computes what), run (the model), choose (the next tokens), emit (what the reader sees).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nanochat.checkpoints.folder import load_model
from nanochat.common import UserError
from nanochat.data.conversations import Conversation
from nanochat.host import allowed_processors, free_memory
from nanochat.inference.cache import KVCache
from nanochat.inference.calculator import calculate
from nanochat.inference.prepared import prepared_weights
from nanochat.inference.request import Request, Result, Sample
from nanochat.inference.runner import CHUNKS, CudaRunner, Flight, NativeRunner, Runner, TorchRunner, page_bytes
from nanochat.inference.sampler import NOT_FINITE, choose, logprobs_of
from nanochat.inference.sampling import SamplingParams
from nanochat.inference.scheduler import MOST_RUNNING, Batch, Scheduler
from nanochat.inference.transcript import Delta, FinishReason, Token, Vocabulary
from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.model.native import cuda_obstacle, native_obstacle, weights_state
from nanochat.native.decoder import PAGE
from nanochat.native.packing import FORMATS
from nanochat.tokenizer import NanoChatTokenizer

Prompt = str | Sequence[int] | Conversation
Emitted = tuple[Request, Delta]

CACHE_SHARE = 0.3  # of the free memory
LOGPROBS_CHUNK = 256  # tokens whose logits are held at once
FORMAT_OF = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Stats:
    """What the engine is doing: counts of answers, of pages of 16 tokens, of tokens since it was made."""

    running: int
    waiting: int
    pages_used: int
    pages_total: int
    pages_cached: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int


class Engine:
    """Generates with a model and its tokenizer.

    A prompt is a string (plain text: `<|bos|>` is put before it and control tokens in it are ordinary characters), a
    conversation (`[{"role": "user", "content": "Hi"}]`; the assistant's turn is opened) or a list of token ids (taken
    as they are). Where the model calls the calculator (`<|python_start|>…<|python_end|>`), the engine computes the
    expression and writes the result into the answer; if it can't be computed, the model goes on alone. The model
    itself can't write tool results or anybody else's turn: those tokens are never chosen.

    On a CPU the native decoder computes, where there is a C compiler: then an answer is the same to the bit whatever
    else is in the batch and in the cache. On an NVIDIA GPU the CUDA decoder does, which also chooses the tokens: the
    next step is started before those of the last one are here, so that the GPU never waits. (Penalties, biases and
    probabilities need the logits here; while they are asked for, it does wait.) A seed's draws are the same there, but
    the logits they choose from are rounded otherwise for another number of rows. Elsewhere the model itself computes,
    in plain PyTorch. An engine belongs to one thread; `AsyncEngine` lends it to many tasks.

    Args:
        model: On the device and in the dtype to compute with. If it is trained on, the engine takes the new weights
            the next time it has nothing to do.
        tokenizer: The model's.
        quantize: "bf16", "int8" or "int4": weights rounded to this format. None: as they are.
        threads: Of the native decoder; as many as PyTorch uses if not given. Nothing in the process is changed by it.
        cache_tokens: For how many tokens there are keys and values; by the free memory if not given.

    Raises:
        UserError: if tokenizer and model don't belong together, or the format can't be had: it says why.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: NanoChatTokenizer,
        quantize: str | None = None,
        *,
        threads: int | None = None,
        cache_tokens: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.context_length: int = model.config.max_position_embeddings  # tokens of prompt and answer together
        self._vocabulary = Vocabulary(tokenizer)
        size = model.config.vocab_size
        if size < len(tokenizer):
            raise UserError(
                f"the tokenizer has {len(tokenizer)} tokens but the model only {size}: they don't belong together"
            )
        # Rows of a padded embedding stand for no text.
        self._forbidden = [*self._vocabulary.reserved, *range(len(tokenizer), size)]
        for what, number in (("threads", threads), ("cache_tokens", cache_tokens)):
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
                raise UserError(f"{what} must be a whole number of at least 1, or None, got {number!r}")
        self._folder = folder
        self._threads = threads
        self._cache_tokens = cache_tokens
        self._format = _format(model, quantize)
        self._load()
        self._early: list[Emitted] = []  # given beginnings of answers
        self._flight: Flight | None = None  # a step whose tokens haven't been looked at yet
        self._computed_prompt_tokens = self._cached_tokens = self._generated_tokens = 0

    @classmethod
    def from_pretrained(cls, source: str | Path, quantize: str | None = None, **kwargs: Any) -> "Engine":
        """Load model and tokenizer from a folder or the hub; on the GPU if there is one. Arguments as of the class.

        Rounded weights are kept in the folder, in `.prepared`, so that they are made only once.

        Raises:
            UserError: if there is no such folder or id, or no whole model in it.
        """
        model, tokenizer = load_model(source)
        device: Any = "cuda" if torch.cuda.is_available() else "cpu"
        folder = Path(source).expanduser()
        return cls(model.to(device), tokenizer, quantize, folder=folder if folder.is_dir() else None, **kwargs)

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Result]:
        """Answer every prompt; the results are in the order of the prompts, those of one with n > 1 side by side.

        `params` is one for all or one each; with one for all and a seed in it, equal prompts get equal answers.

        Raises:
            UserError: before anything is generated, for a prompt that is empty, fills the context, has ids outside
                the vocabulary or is of no known kind.
        """
        if isinstance(prompts, str):
            raise UserError("generate takes a list of prompts: write generate([prompt])")
        if not isinstance(params, SamplingParams | Sequence | None):
            raise UserError(f"params must be SamplingParams, or a list of them, got {params!r:.80}")
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, Sequence) else params
        if len(each) != len(prompts):
            raise UserError(f"got {len(prompts)} prompts but {len(each)} SamplingParams: one for all, or one each")
        requests = [self.prepare(prompt, its, name=f"prompt {n}") for n, (prompt, its) in enumerate(zip(prompts, each))]
        for request in requests:
            self.start(request)
        try:
            while not all(request.finished for request in requests):
                self.step()
        finally:
            for request in requests:
                self.cancel(request)
        for request in requests:
            if request.error:
                raise RuntimeError(request.error)
        return [result for request in requests for result in request.results()]

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, prefix: Sequence[int] = ()
    ) -> Iterator[Delta]:
        """Return an iterator over the pieces of the answer to one prompt, as they come.

        `join_deltas` makes message content of them. To stop early, stop iterating. The answer begins with the tokens
        of `prefix`.

        Raises:
            UserError: at once, as in `generate`.
        """
        return self._stream(self.prepare(prompt, params, prefix=prefix))

    def _stream(self, request: Request) -> Iterator[Delta]:
        self.start(request)
        try:
            while not request.finished:
                yield from (delta for whose, delta in self.step() if whose is request)
            yield from (delta for _, delta in self.cancel(request))  # where the given beginning was all of it
        finally:
            self.cancel(request)
        if request.error:
            raise RuntimeError(request.error)

    def add(self, prompt: Prompt, params: SamplingParams | None = None, *, prefix: Sequence[int] = ()) -> Request:
        """Queue a prompt; `step` works on it until it is finished. The answer begins with the tokens of `prefix`.

        Raises:
            UserError: as in `generate`.
        """
        request = self.prepare(prompt, params, prefix=prefix)
        self.start(request)
        return request

    def prepare(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        prefix: Sequence[int] = (),
        name: str = "the prompt",
    ) -> Request:
        """Check a prompt and make a request of it, without queueing it; may be called from any thread.

        Raises:
            UserError: as in `generate`, with `name` in it.
        """
        params = params or SamplingParams()
        if not isinstance(params, SamplingParams):
            raise UserError(f"the parameters of {name} must be SamplingParams, got {params!r:.80}")
        ids = self.encode(prompt, name)
        beginning = self._without_open_result(self._checked_ids(prefix, "the prefix"))
        length = len(ids) + len(beginning)
        if length >= self.context_length:
            raise UserError(
                f"{name} has {length} tokens, but the model's context is {self.context_length} and the answer needs "
                "room too: shorten it"
            )
        if params.logit_bias:
            self._checked_ids(list(params.logit_bias), "logit_bias")
        longest = min(length + params.max_new_tokens, self.context_length)
        if longest > self._cache.pages * PAGE:
            raise UserError(
                f"{name} and its answer may take {longest} tokens, but the cache holds {self._cache.pages * PAGE}: "
                "lower max_new_tokens or raise cache_tokens"
            )
        return Request(ids, params, self._vocabulary, self.context_length, beginning)

    def start(self, request: Request) -> None:
        """Queue a prepared request."""
        self._renew()
        for sample in request.samples:
            for n, id in enumerate(request.prefix, 1):
                if sample.finish_reason is None:
                    last = n == len(request.prefix)
                    self._early += [(request, delta) for delta in self._accept(sample, Token(id, forced=True), last)]
        self._scheduler.add(sample for sample in request.samples if sample.finish_reason is None)

    def cancel(self, request: Request) -> list[Emitted]:
        """End a request now and free its place; does nothing to a finished one. Returns its last pieces."""
        emitted = [early for early in self._early if early[0] is request]
        self._early = [early for early in self._early if early[0] is not request]
        for sample in request.samples:
            if sample.finish_reason is None:
                emitted.append((request, self._end(sample, "cancelled")))
                self._scheduler.remove(sample)
        return emitted

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._scheduler.running or self._scheduler.waiting or self._early or self._flight)

    def step(self) -> list[Emitted]:
        """Compute the next tokens of some requests, in the order they came; return what that adds to their answers.

        A request that can't go on ends with finish_reason "error" and the reason in `request.error`, the others go on.
        """
        emitted, self._early = self._early, []
        ahead = isinstance(self._runner, CudaRunner) and not self._scheduler.needs_logits
        if not ahead:
            emitted += self._land()
        batch, flight = self._scheduler.schedule(), None
        if batch.samples:
            try:
                if ahead:
                    flight = self._launch(batch)
                else:
                    logits = self._runner.run(batch)
                    self._computed(batch)
                    emitted += self._emit(batch, logits)
            except Exception as error:  # out of memory, damaged weights: these requests can't be answered
                emitted += self._fail(batch.samples, error)
        return emitted + self._land(flight)

    def stats(self) -> Stats:
        """What the engine is doing now."""
        cache = self._cache
        return Stats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            pages_used=cache.pages - cache.free,
            pages_total=cache.pages,
            pages_cached=cache.cached,
            prompt_tokens=self._computed_prompt_tokens,
            cached_tokens=self._cached_tokens,
            generated_tokens=self._generated_tokens,
        )

    def describe(self) -> str:
        """One line for people: with what it computes, and for how many tokens it keeps keys and values."""
        return f"{self._runner.describe()}, cache of {self._cache.pages * PAGE:,} tokens"

    def encode(self, prompt: Prompt, name: str = "the prompt") -> list[int]:
        """Return the token ids of a prompt. Raises UserError, with `name` in it, if it is not one."""
        kinds = f"{name} must be a string, a conversation or a list of token ids"
        if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
            raise UserError(f"{kinds}, got {type(prompt).__name__}")
        if not prompt:
            raise UserError(f"{name} is empty: give at least one character, message or token ([bos_token_id] will do)")
        try:
            if isinstance(prompt, str):
                return [self._vocabulary.bos, *self.tokenizer.encode_ordinary_batch([prompt])[0]]
            if all(isinstance(item, dict) for item in prompt):
                return self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        return self._checked_ids(prompt, name, kinds)

    def logprobs(self, token_ids: Sequence[int]) -> Tensor:
        """The natural log of each token's probability given those before it: of T ids, (T - 1) fp32.

        Raises:
            UserError: for fewer than two ids, more than the context, or ids outside the vocabulary.
        """
        ids = self._checked_ids(token_ids, "token_ids")
        if not 2 <= len(ids) <= self.context_length:
            raise UserError(f"logprobs needs from 2 to {self.context_length} token ids, got {len(ids)}")
        self._early += self._land()  # what is being chosen on a GPU stands where this would overwrite it
        self._renew()
        [sample] = Request(ids, SamplingParams(max_new_tokens=1), self._vocabulary, self.context_length + 1).samples
        if not self._cache.reserve(sample, len(ids)):
            raise UserError(f"the cache has no room for {len(ids)} tokens now: raise cache_tokens")
        pieces = []
        try:
            while sample.computed < len(ids) - 1:
                start = sample.computed
                batch = Batch()
                batch.add(sample, min(LOGPROBS_CHUNK, len(ids) - 1 - start))
                sample.computed = batch.lengths[0]
                batch.rows = list(range(len(batch.tokens)))
                logits = self._runner.run(batch).log_softmax(dim=-1)
                targets = torch.tensor(ids[start + 1 : sample.computed + 1])
                pieces.append(logits.gather(1, targets[:, None])[:, 0])
        finally:
            self._cache.release(sample)
        return torch.cat(pieces)

    def _renew(self) -> None:
        if not self.has_work and weights_state(self.model) != self._weights_then:
            self._folder = None  # what is prepared there is not this model any more
            self._load()

    def _load(self) -> None:
        """Take the model's weights as they are now; the cache is empty then."""
        self._weights_then = weights_state(self.model)
        self._runner = self._make_runner()
        self._cache = KVCache(self._runner.pages)
        chunk = CHUNKS.get(self.model.device.type, CHUNKS["cpu"])
        self._scheduler = Scheduler(self._cache, chunk, drafts=not isinstance(self._runner, CudaRunner))

    def _make_runner(self) -> Runner:
        model, format = self.model, self._format
        pages = self._pages(2 if format in ("bf16", "int8", "int4") else 4)
        if format is None or not isinstance(model, NanoChatForCausalLM):
            return TorchRunner(model, pages)
        if model.device.type == "cuda":
            return CudaRunner(model, format, pages, self._forbidden)
        threads = self._threads or min(torch.get_num_threads(), allowed_processors())
        return NativeRunner(model, format, prepared_weights(model, format, self._folder), pages, threads)

    def _pages(self, bytes_per_number: int) -> int:
        """Pages for `cache_tokens`, or for as many full contexts as can run at once, if there is memory for them."""
        if self._cache_tokens is not None:
            return -(-self._cache_tokens // PAGE)
        context = -(-self.context_length // PAGE)
        room = CACHE_SHARE * free_memory(self.model.device.type) / page_bytes(self.model.config, bytes_per_number)
        return max(context, min(int(room), MOST_RUNNING * context))

    def _checked_ids(self, ids: Sequence[Any], name: str, kinds: str | None = None) -> list[int]:
        size = self.model.config.vocab_size
        for id in ids:
            if not isinstance(id, int) or isinstance(id, bool):
                raise UserError(f"{kinds or f'{name} must have token ids'}, but has {id!r} in it")
            if not 0 <= id < size:
                raise UserError(f"{name} has the token id {id}, but the model's ids go from 0 to {size - 1}")
        return list(ids)

    def _without_open_result(self, beginning: list[int]) -> list[int]:
        """The beginning of an answer up to the call whose result it breaks off in: the calculator gives it again."""
        vocabulary = self._vocabulary
        opened = max((n for n, id in enumerate(beginning) if id == vocabulary.output_start), default=0)
        if not opened or vocabulary.output_end in beginning[opened:]:
            return beginning
        return beginning[:opened]

    def _launch(self, batch: Batch) -> Flight:
        """Start a step that chooses on the device."""
        assert isinstance(self._runner, CudaRunner)
        flight = self._runner.launch(batch)
        self._computed(batch)
        for sample, place in zip(batch.choosing, flight.places):
            sample.place = place
            sample.ahead += 1
        return flight

    def _land(self, newer: Flight | None = None) -> list[Emitted]:
        """Look at the tokens of the step before; `newer` is the one that has been started since."""
        flight, self._flight = self._flight, newer
        if flight is None:
            return []
        emitted: list[Emitted] = []
        try:
            tokens = flight.tokens()
        except Exception as error:  # the device has failed
            return self._fail(flight.batch.samples, error)
        for sample, token in zip(flight.batch.choosing, tokens):
            if sample.finish_reason or sample in flight.dropped:
                continue
            sample.ahead -= 1
            before = len(sample.tokens)
            self._told_of(sample)
            try:
                if token < 0:
                    raise FloatingPointError(NOT_FINITE)
                deltas = self._accept(sample, Token(token))
            except Exception as error:  # of this request only
                emitted += self._fail([sample], error)
            else:
                emitted += [(sample.request, delta) for delta in deltas]
            if sample.ahead and (sample.finish_reason or len(sample.tokens) > before + 1):
                assert newer is not None
                newer.dropped.add(sample)  # what is being chosen there doesn't follow this token
                sample.drop_choice()
        self._register(flight.batch)
        return emitted

    def _computed(self, batch: Batch) -> None:
        """Note what a step has put into the cache, or will have when it is done."""
        for sample, length, start, end in zip(batch.samples, batch.lengths, batch.starts, batch.starts[1:]):
            drafts = len(sample.drafts) if sample in batch.choosing else 0
            if sample.computed < sample.request.prompt_tokens:
                self._computed_prompt_tokens += end - start - drafts
            sample.computed = length - drafts

    def _told_of(self, sample: Sample) -> None:
        """A token has been chosen for a sample."""
        request = sample.request
        request.token_chosen()
        if not request.prompt_computed:
            request.prompt_computed = True
            self._cached_tokens += request.cached_tokens

    def _emit(self, batch: Batch, logits: Tensor) -> list[Emitted]:
        if not batch.choosing:
            self._register(batch)
            return []
        counts = [1 + len(sample.drafts) for sample in batch.choosing]
        firsts = [sum(counts[:n]) for n in range(len(counts))]
        told = logits.clone() if any(sample.params.logprobs is not None for sample in batch.choosing) else logits
        logits.numpy()[:, self._forbidden] = -math.inf
        emitted: list[Emitted] = []
        for sample, first in zip(batch.choosing, firsts):
            if sample.finish_reason:  # another answer to its request has just failed
                continue
            try:
                deltas = self._follow(sample, told, logits, first)
            except Exception as error:  # of this request only
                emitted += self._fail([sample], error)
            else:
                emitted += [(sample.request, delta) for delta in deltas]
        self._register(batch)
        return emitted

    def _follow(self, sample: Sample, told: Tensor, logits: Tensor, first: int) -> list[Delta]:
        """Choose the next token and, while drafts turn out to be what is chosen, the tokens after it.

        `told` has the model's own logits, `logits` those to choose from, the sample's own from row `first` on. A draft
        changes nothing but the speed: every token is chosen as if there were none.
        """
        drafts = sample.drafts
        self._told_of(sample)
        deltas: list[Delta] = []
        right = 0
        while True:
            token = choose(logits[first + right], sample)
            logprob, top = None, ()
            if sample.params.logprobs is not None:
                logprob, top = logprobs_of(told[first + right], token, sample.params.logprobs)  # type: ignore[assignment]
            before = len(sample.tokens)
            deltas += self._accept(sample, Token(token, logprob, top))
            forced = len(sample.tokens) > before + 1
            if sample.finish_reason or forced or right == len(drafts) or token != drafts[right]:
                break
            right += 1
            sample.computed += 1
        if drafts:
            sample.drafted(right, len(drafts))
            sample.drafts = []
        return deltas

    def _accept(self, sample: Sample, token: Token, may_call: bool = True) -> list[Delta]:
        """Add a token to an answer, and after the end of a call its result; return what they add for the reader."""
        sample.tokens.append(token.id)
        self._generated_tokens += 1
        if token.id in sample.stops and not token.forced:
            return [self._end(sample, "stop", token)]
        call = sample.transcript.open_call
        deltas = sample.emit(sample.transcript.read(token))
        result = calculate(call) if token.id == self._vocabulary.python_end and call is not None and may_call else None
        written = [token]
        if result is not None:
            vocabulary, ids = self._vocabulary, self.tokenizer.encode_ordinary_batch([result])[0]
            written += [Token(id, forced=True) for id in (vocabulary.output_start, *ids, vocabulary.output_end)]
        for forced in written[1:]:
            if sample.answer_length < sample.room:
                sample.tokens.append(forced.id)
                deltas += sample.emit(sample.transcript.read(forced))
        if sample.transcript.stopped:
            deltas.append(self._end(sample, "stop"))
        elif sample.answer_length >= sample.room:
            deltas.append(self._end(sample, "length"))
        return deltas

    def _end(self, sample: Sample, reason: FinishReason, *tokens: Token) -> Delta:
        [delta] = sample.emit([sample.transcript.end(reason, *tokens)])
        return delta

    def _register(self, batch: Batch) -> None:
        for sample in batch.samples:
            if sample.pages:
                self._cache.register(sample)
            if sample.finish_reason:
                self._scheduler.remove(sample)

    def _fail(self, samples: Sequence[Sample], error: Exception) -> list[Emitted]:
        emitted = []
        for request in dict.fromkeys(sample.request for sample in samples):
            request.error = f"{type(error).__name__}: {error}"
            for sample in request.samples:
                if sample.finish_reason is None:
                    emitted.append((request, self._end(sample, "error")))
                self._scheduler.remove(sample)
        return emitted


def _format(model: PreTrainedModel, quantize: str | None) -> str | None:
    """The format in which a decoder of our own runs a model; None for plain PyTorch."""
    if quantize is not None and quantize not in FORMATS:
        raise UserError(f"quantize must be one of {', '.join(FORMATS)}, or None, got {quantize!r}")
    format = quantize or FORMAT_OF.get(model.dtype)
    if not isinstance(model, NanoChatForCausalLM):
        obstacle: str | None = f"the model is a {type(model).__name__}, not nanochat's own"
    else:
        find_obstacle = cuda_obstacle if model.device.type == "cuda" else native_obstacle
        obstacle = find_obstacle(model, format) if format else f"the model is in {model.dtype}"
    if quantize is not None and obstacle is not None:
        raise UserError(f"this model can't be run in {quantize}, because {obstacle}: leave quantize out")
    return None if obstacle else format
