"""Who computes what in the next step: running answers one token each, prompts in chunks, in the order they came."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from nanochat.inference.cache import KVCache
from nanochat.inference.request import Sample

MOST_RUNNING = 64
MOST_DRAFTING = 2  # answers that run at once; with more the machine has enough to multiply without guesses


@dataclass
class Batch:
    """The tokens of one step: of each sample its next ones, one sample after the other.

    A token that the device has chosen but nobody has seen yet is -1 - p, where p is its place there.
    """

    samples: list[Sample] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])  # of each sample's tokens, and their end
    lengths: list[int] = field(default_factory=list)  # of each sample, after the step
    rows: list[int] = field(default_factory=list)  # of `tokens`, whose logits choose the next tokens
    choosing: list[Sample] = field(default_factory=list)  # samples that choose, each from 1 + its drafts rows

    @property
    def tables(self) -> list[list[int]]:
        """The pages of each sample."""
        return [sample.pages for sample in self.samples]

    def add(self, sample: Sample, count: int) -> None:
        """Add the next `count` known tokens of a sample, and after its last one its drafts."""
        end = sample.computed + count
        chooses = end == sample.length
        tokens = sample.tokens[sample.computed : end] + (sample.drafts if chooses else [])
        if end > len(sample.tokens):
            tokens.append(-1 - sample.place)
        self.samples.append(sample)
        self.tokens += tokens
        self.starts.append(len(self.tokens))
        self.lengths.append(sample.computed + len(tokens))
        if chooses:
            self.rows += range(len(self.tokens) - len(sample.drafts) - 1, len(self.tokens))
            self.choosing.append(sample)


class Scheduler:
    """Admits samples in the order they came and shares out the tokens of each step.

    Args:
        cache: whose pages samples need.
        chunk: most tokens of a step; longer prompts are cut.
        drafts: whether guesses may be computed along.
    """

    def __init__(self, cache: KVCache, chunk: int, drafts: bool) -> None:
        self.cache = cache
        self.chunk = chunk
        self.drafts = drafts
        self.waiting: deque[Sample] = deque()
        self.running: list[Sample] = []  # in the order they came

    def add(self, samples: Iterable[Sample]) -> None:
        """Let samples wait for their turn."""
        self.waiting += samples

    def remove(self, sample: Sample) -> None:
        """Take out a sample that has ended, wherever it is, and free its pages."""
        if sample in self.running:
            self.running.remove(sample)
            self.cache.release(sample)
        elif sample in self.waiting:
            self.waiting.remove(sample)

    @property
    def needs_logits(self) -> bool:
        """Whether an answer's tokens have to be chosen here, not on the device."""
        return any(sample.needs_logits for sample in (*self.running, *self.waiting))

    def schedule(self) -> Batch:
        """What to compute next: a token of each running answer, then prompts while there is room."""
        batch = Batch()
        drafting = self.drafts and len(self.running) <= MOST_DRAFTING and not self.waiting
        for sample in list(self.running):
            if sample in self.running and not sample.full:  # not set back meanwhile
                sample.drafts = sample.draft() if drafting and not sample.in_prompt else []
                self._make_room(sample, sample.length + len(sample.drafts))
        for sample in self.running:
            if not sample.in_prompt and not sample.full:
                batch.add(sample, 1)
        for sample in self.running:
            if sample.in_prompt:  # or in the result of a call
                self._add_chunk(batch, sample)
        while self.waiting and len(self.running) < MOST_RUNNING and len(batch.tokens) < self.chunk:
            if not self._admit(self.waiting[0]):
                break
            self._add_chunk(batch, self.running[-1])
        return batch

    def _admit(self, sample: Sample) -> bool:
        """Start a waiting sample if the cache has room for all of its tokens and one more."""
        request = sample.request
        if sample.index and not request.prompt_computed:
            return False  # its prompt is on the way, by the first sample of the request
        if sample.ahead:
            return False  # it was set back while a token of it was being chosen
        known = self.cache.take_known(sample)
        if not self.cache.reserve(sample, len(sample.tokens) + 1):
            self.cache.release(sample)
            return False
        if sample.index == 0 and not request.prompt_computed:
            request.cached_tokens = min(known, request.prompt_tokens)
        self.waiting.popleft()
        self.running.append(sample)
        return True

    def _add_chunk(self, batch: Batch, sample: Sample) -> None:
        count = min(sample.length - sample.computed, self.chunk - len(batch.tokens))
        if count > 0:
            batch.add(sample, count)

    def _make_room(self, sample: Sample, length: int) -> None:
        """Reserve pages for `length` tokens; for want of room the newest running samples go back to wait."""
        while not self.cache.reserve(sample, length):
            last = self.running.pop()
            self.cache.release(last)
            last.drafts = []
            self.waiting.appendleft(last)
            if last is sample:
                return
