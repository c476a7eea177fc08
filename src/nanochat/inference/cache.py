"""Which pages of the key/value cache belong to whom, and which hold the beginnings of prompts seen before."""

from collections import OrderedDict

from nanochat.inference.request import Sample
from nanochat.native.decoder import PAGE

Key = tuple[int, tuple[int, ...]]  # the name of the page before, and the tokens of this one


class KVCache:
    """The books of a cache of `pages` pages of 16 positions; the runner has the keys and values themselves.

    A full page is known by its tokens and all before them, so that a prompt that begins like an earlier one (a system
    message, the turns so far) takes its pages instead of computing them again. Pages that nobody uses any more keep
    what they hold until their room is needed, the longest unused first.
    """

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._users = [0] * pages
        self._empty = list(reversed(range(pages)))
        self._idle: OrderedDict[int, None] = OrderedDict()  # unused pages that hold something, the oldest first
        self._page_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}
        self._name_of: dict[int, int] = {}  # never the same for two contents
        self._names = 0

    @property
    def free(self) -> int:
        """How many pages could be had now."""
        return len(self._empty) + len(self._idle)

    @property
    def cached(self) -> int:
        """How many pages are known by their tokens."""
        return len(self._key_of)

    def take_known(self, sample: Sample) -> int:
        """Give a sample without pages those known by its first tokens; return how many tokens they hold.

        The last token is never among them: its logits are to be computed.
        """
        tokens = sample.tokens
        for start in range(0, len(tokens) - PAGE, PAGE):
            page = self._page_of.get((sample.chain, tuple(tokens[start : start + PAGE])))
            if page is None:
                break
            self._idle.pop(page, None)
            self._users[page] += 1
            sample.pages.append(page)
            sample.chain = self._name_of[page]
        sample.registered = len(sample.pages)
        sample.computed = len(sample.pages) * PAGE
        return sample.computed

    def reserve(self, sample: Sample, length: int) -> bool:
        """Give a sample pages for its first `length` tokens; False, and nothing changes, if there aren't enough."""
        missing = -(-length // PAGE) - len(sample.pages)
        if missing > self.free:
            return False
        for _ in range(missing):
            page = self._empty.pop() if self._empty else self._forget_oldest()
            self._users[page] = 1
            sample.pages.append(page)
        return True

    def register(self, sample: Sample) -> None:
        """Make the sample's full pages known by their tokens."""
        while (sample.registered + 1) * PAGE <= sample.computed:
            start = sample.registered * PAGE
            key = sample.chain, tuple(sample.tokens[start : start + PAGE])
            page = self._page_of.get(key)
            if page is None:
                page = sample.pages[sample.registered]
                self._names += 1
                self._page_of[key], self._key_of[page], self._name_of[page] = page, key, self._names
            sample.chain = self._name_of[page]
            sample.registered += 1

    def release(self, sample: Sample) -> None:
        """Take back a sample's pages."""
        for page in reversed(sample.pages):  # the last pages are the first to be forgotten
            self._users[page] -= 1
            if self._users[page] == 0:
                if page in self._key_of:
                    self._idle[page] = None
                else:
                    self._empty.append(page)
        sample.pages = []
        sample.computed = sample.registered = sample.chain = 0

    def _forget_oldest(self) -> int:
        page, _ = self._idle.popitem(last=False)
        self._unregister(page)
        return page

    def _unregister(self, page: int) -> None:
        del self._page_of[self._key_of.pop(page)], self._name_of[page]
