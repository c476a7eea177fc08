"""The nouns of the Primer: an exchange, a question, a skill; how items are held out and replies are scored."""

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from nanochat.common import UserError

Conversation = list[dict[str, Any]]
Match = Literal["word", "exact", "letter", "number", "numbers", "spelled"]
T = TypeVar("T")

SPLITS = ("train", "val")

# The demo conversation is honest only if its questions are held out: these items are "val" whatever their hash says.
DEMO_ITEMS = {
    ("knowledge", "what is the capital of france"),
    ("knowledge", "who are you"),
    ("arithmetic", "24*37"),
}


@dataclass(frozen=True)
class Exchange:
    """One user turn, its reference reply, and what a right reply must say.

    `tool` is (expression, output) where the reply first calls the calculator. `rivals` are competing answers that a
    right reply does not mention; `accepted` are complete replies that are right although they mention a rival.
    """

    user: str
    reply: str
    answer: str
    rivals: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    match: Match = "word"
    tool: tuple[str, str] | None = None

    def content(self) -> str | list[dict[str, str]]:
        """The assistant's message content: a string, or parts where the calculator is called."""
        if self.tool is None:
            return self.reply
        expression, output = self.tool
        return [
            {"type": "python", "text": expression},
            {"type": "python_output", "text": output},
            {"type": "text", "text": self.reply},
        ]


@dataclass(frozen=True)
class Question:
    """A held-out question: `conversation` ends with the user's message, `answer` is the content expected in the reply.

    `reference` is a complete right reply and `tool` the expected (expression, output) of the calculator, or None.
    """

    skill: str
    conversation: Conversation
    answer: str
    reference: str
    tool: tuple[str, str] | None
    match: Match
    rivals: tuple[str, ...]
    accepted: tuple[str, ...]


@dataclass(frozen=True)
class Skill:
    """One thing that the Primer teaches and asks.

    `talk(rng, split)` draws one to three exchanges on one subject, all of them from `split`.
    """

    name: str
    description: str
    talk: Callable[[random.Random, str], list[Exchange]]

    def questions(self, split: str, count: int, seed: int = 0) -> list[Question]:
        """`count` questions of `split` ("train" or "val"), the same for the same arguments.

        Where an item space is small (identity, greetings), questions repeat rather than run out.
        """
        check_split(split)
        rng = random.Random(f"primer/questions/{self.name}/{split}/{seed}")
        return [self._question(self.talk(rng, split)) for _ in range(count)]

    def score(self, question: Question, reply: str) -> float:
        """1.0 if `reply` (visible text, without tool call and output) is right, else 0.0."""
        return float(_is_right(question, reply))

    def _question(self, talk: list[Exchange]) -> Question:
        last = talk[-1]
        conversation = messages(talk)[:-1]
        return Question(
            self.name, conversation, last.answer, last.reply, last.tool, last.match, last.rivals, last.accepted
        )


def messages(talk: Sequence[Exchange]) -> Conversation:
    """The exchanges as alternating user and assistant messages."""
    result: Conversation = []
    for exchange in talk:
        result.append({"role": "user", "content": exchange.user})
        result.append({"role": "assistant", "content": exchange.content()})
    return result


def check_split(split: str) -> None:
    """Raise a UserError unless `split` is "train" or "val"."""
    if split not in SPLITS:
        raise UserError(f'the split must be "train" or "val", got {split!r}')


def is_held_out(skill: str, item: str, one_in: int = 10) -> bool:
    """Whether `item` belongs to "val": a stable hash decides, the same in every process and Python version."""
    if (skill, item) in DEMO_ITEMS:
        return True
    digest = hashlib.blake2b(f"{skill}|{item}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % one_in == 0


def draw_item(skill: str, split: str, propose: Callable[[], T], key: Callable[[T], str], one_in: int = 10) -> T:
    """Call `propose` until the item's key falls into `split`."""
    while True:
        item = propose()
        if is_held_out(skill, key(item), one_in) == (split == "val"):
            return item


def decorate(rng: random.Random, text: str, lower: bool = False) -> str:
    """Write a question the way people type: mostly as it is, now and then polite, hasty or without capitals.

    What is no question (an instruction, a greeting) stays as it is.

    With `lower`, names may lose their capitals too, which only suits questions whose answer copies nothing.
    """
    roll = rng.random()
    if roll < 0.70 or not text.endswith("?"):
        return text
    if roll < 0.78:
        return text[0].lower() + text[1:] if not text.startswith(("I ", "I'")) else text
    if roll < 0.85:
        return text.rstrip("? ")
    if roll < 0.90:
        return text[:-1] + ", please?"
    if roll < 0.93 and lower:
        return text.lower().rstrip("? ")
    return (
        rng.choice(("Hi! ", "Hello! ", "I have a question: ", "A question: ", "Quick question: ", "I wonder: ")) + text
    )


_NUMBER_WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
_NUMBER_WORD = re.compile(r"\b(" + "|".join(_NUMBER_WORDS) + r")\b")


def _normal(text: str) -> str:
    text = " ".join(text.lower().split()).strip(" .!?\"'")
    return _NUMBER_WORD.sub(lambda found: str(_NUMBER_WORDS.index(found[0])), text)


def _says(text: str, phrase: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(_normal(phrase))}(?![\w-])", text) is not None


def _is_right(question: Question, reply: str) -> bool:
    text, answer, asked = _normal(reply), _normal(question.answer), _normal(question.conversation[-1]["content"])
    if text == asked != answer:  # an echo is no answer, even if the answer is in the question's story
        return False
    if question.match == "exact":
        return text == answer
    if question.match == "letter":
        return (re.findall(r'"(\w)"', reply.lower()) or [text]) == [answer]
    if question.match == "spelled":
        return set(re.findall(r"\w(?:-\w)+", text)) == {answer} and _says(text, answer)
    if question.match == "numbers":
        return re.findall(r"\d+", text) == re.findall(r"\d+", answer)
    if question.match == "number":
        numbers = [number.removesuffix(".0") for number in re.findall(r"\d+(?:\.\d+)?", text)]
        return bool(numbers) and numbers[-1] == answer and set(numbers) <= {*re.findall(r"\d+", asked), answer}
    if text in map(_normal, question.accepted):
        return True
    return _says(text, answer) and not any(_says(text, rival) for rival in question.rivals)
