"""Numbers: sums with the calculator, small word problems, comparing and putting in order."""

import itertools
import random
from typing import NamedTuple

from nanochat.data.primer.skill import Exchange, decorate, draw_item
from nanochat.data.primer.words import COUNTED, NAMES


class Sum(NamedTuple):
    """Two operands and one of + - * /; every result is a whole number from 0 up."""

    a: int
    sign: str
    b: int

    @property
    def key(self) -> str:
        low, high = sorted((self.a, self.b))
        return f"{low}{self.sign}{high}" if self.sign in "+*" else f"{self.a}{self.sign}{self.b}"

    @property
    def expression(self) -> str:
        return f"{self.a}{self.sign}{self.b}"

    @property
    def value(self) -> int:
        a, b = self.a, self.b
        return {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[self.sign]

    @property
    def output(self) -> str:
        """What the calculator prints: Python's division makes a float."""
        return f"{self.value}.0" if self.sign == "/" else str(self.value)


def draw_sum(rng: random.Random, split: str, signs: str = "+-*/", largest: int = 999) -> Sum:
    """A sum of `split`; most operands have one or two digits, some of + and - three."""

    def propose() -> Sum:
        sign = rng.choice(signs)
        if sign == "*":
            return Sum(rng.randint(2, 99), sign, rng.randint(2, 99))
        if sign == "/":
            divisor, quotient = rng.randint(2, 20), rng.randint(2, 40)
            return Sum(divisor * quotient, sign, divisor)
        top = min(largest, 99 if rng.random() < 0.75 else 999)
        a, b = rng.randint(2, top), rng.randint(2, top)
        return Sum(max(a, b), sign, min(a, b)) if sign == "-" else Sum(a, sign, b)

    return draw_item("arithmetic", split, propose, lambda item: item.key)


WAYS = {  # how a sum is read aloud
    "+": ("{a} plus {b}", "{a} and {b} together", "the sum of {a} and {b}", "{a} + {b}", "{a}+{b}"),
    "-": ("{a} minus {b}", "{a} less {b}", "{a} take away {b}", "{a} - {b}", "{a}-{b}"),
    "*": ("{a} times {b}", "{a} multiplied by {b}", "the product of {a} and {b}", "{a} * {b}", "{a} x {b}", "{a}*{b}"),
    "/": ("{a} divided by {b}", "{a} over {b}", "{a} / {b}", "{a}/{b}"),
}
SPOKEN = {"+": "{a} plus {b}", "-": "{a} minus {b}", "*": "{a} times {b}", "/": "{a} divided by {b}"}
_ASK = (
    "What is {s}?", "What's {s}?", "How much is {s}?", "Calculate {s}.", "Compute {s}.", "Work out {s}.",
    "Can you work out {s}?",
    "Tell me {s}.", "{s}?", "{s} = ?", "I need to know {s}.", "Please calculate {s}.", "Find {s}.",
    "Do you know what {s} is?",
)  # fmt: skip
_FOLLOW = ("And {s}?", "And what is {s}?", "What about {s}?", "Now {s}.")

_PROBLEMS = {
    "+": (
        ("{n} has {a} {k} and gets {b} more. How many {k} does {n} have now?", "{n} has {v} {k}."),
        ("There are {a} {k} on the table and {b} in the box. How many {k} are there?", "There are {v} {k}."),
        ("{n} finds {a} {k} in the morning and {b} in the evening. How many {k} is that?", "That is {v} {k}."),
    ),
    "-": (
        ("{n} has {a} {k} and gives away {b}. How many {k} are left?", "{v} {k} are left."),
        ("There were {a} {k} in the box. {n} took {b}. How many {k} are left?", "{v} {k} are left."),
        ("{n} had {a} {k} and lost {b}. How many {k} does {n} have now?", "{n} has {v} {k}."),
    ),
    "*": (
        ("There are {a} boxes with {b} {k} each. How many {k} are there?", "There are {v} {k}."),
        ("{n} buys {a} bags of {b} {k}. How many {k} does {n} have?", "{n} has {v} {k}."),
        ("One of the {k} costs {b} cents. How many cents do {a} {k} cost?", "They cost {v} cents."),
    ),
    "/": (
        ("{n} shares {a} {k} among {b} children. How many {k} does each child get?", "Each child gets {v} {k}."),
        ("{a} {k} are put into {b} boxes. How many {k} are in each box?", "There are {v} {k} in each box."),
    ),
}  # fmt: skip


def sum_exchange(rng: random.Random, item: Sum, templates: tuple[str, ...] = _ASK) -> Exchange:
    way = rng.choice(WAYS[item.sign]).format(a=item.a, b=item.b)
    spoken = SPOKEN[item.sign].format(a=item.a, b=item.b)
    text = rng.choice(templates).format(s=way)
    return Exchange(
        decorate(rng, text[0].upper() + text[1:]),
        f"{spoken} is {item.value}.",
        str(item.value),
        match="number",
        tool=(item.expression, item.output),
    )


def problem_exchange(rng: random.Random, item: Sum) -> Exchange:
    question, reply = rng.choice(_PROBLEMS[item.sign])
    words = {"n": rng.choice(list(NAMES)), "k": rng.choice(COUNTED), "a": item.a, "b": item.b, "v": item.value}
    return Exchange(
        question.format(**words),
        reply.format(**words),
        str(item.value),
        match="number",
        tool=(item.expression, item.output),
    )


def arithmetic_talk(rng: random.Random, split: str) -> list[Exchange]:
    exchanges = []
    for turn in range(rng.choice((1, 1, 1, 2, 2, 3))):
        if rng.random() < 0.25:
            exchanges.append(problem_exchange(rng, draw_sum(rng, split, largest=99)))
        else:
            exchanges.append(sum_exchange(rng, draw_sum(rng, split), _FOLLOW if turn and rng.random() < 0.6 else _ASK))
    return exchanges


def draw_numbers(rng: random.Random, split: str, count: int) -> list[int]:
    """`count` different numbers from 0 to 99 in random order, never a piece of a counting sequence."""

    def propose() -> list[int]:
        while True:
            numbers = rng.sample(range(100), count)
            ordered = sorted(numbers)
            if len({b - a for a, b in itertools.pairwise(ordered)}) > 1 or count == 2:
                return numbers

    return draw_item("numbers", split, propose, lambda numbers: " ".join(map(str, sorted(numbers))))


_MORE, _LESS = ("larger", "bigger", "greater"), ("smaller", "less")


def pair_exchange(rng: random.Random, a: int, b: int) -> Exchange:
    more = rng.random() < 0.5
    word = rng.choice(_MORE if more else _LESS)
    right, other = (max(a, b), min(a, b)) if more else (min(a, b), max(a, b))
    text = rng.choice((
        "Which is {w}, {a} or {b}?", "Which number is {w}, {a} or {b}?", "Which is {w}: {a} or {b}?",
        "What is {w}, {a} or {b}?",
        "Tell me which is {w}, {a} or {b}.", "{a} or {b}: which is {w}?", "Which of {a} and {b} is {w}?",
        "Is {a} or {b} {w}?",
    )).format(w=word, a=a, b=b)  # fmt: skip
    return Exchange(
        decorate(rng, text),
        f"{right} is {word} than {other}.",
        str(right),
        rivals=(str(other),),
        accepted=tuple(f"{right} is {w} than {other}" for w in (_MORE if more else _LESS)),
    )


def claim_exchange(rng: random.Random, a: int, b: int) -> Exchange:
    more = rng.random() < 0.5
    right = (a > b) == more
    word = "larger" if more else "smaller"
    text = rng.choice(
        (
            "Is {a} {w} than {b}?",
            "Is {a} a {w} number than {b}?",
            "Is it true that {a} is {w} than {b}?",
            "True or not: is {a} {w} than {b}?",
        )
    )
    fact = f"{a} is {'larger' if a > b else 'smaller'} than {b}."
    return Exchange(
        decorate(rng, text.format(a=a, b=b, w=word)),
        f"{'Yes' if right else 'No'}, {fact}",
        "yes" if right else "no",
        rivals=("no",) if right else ("yes",),
    )


def extreme_exchange(rng: random.Random, numbers: list[int]) -> Exchange:
    most = rng.random() < 0.5
    word = "largest" if most else "smallest"
    right = (max if most else min)(numbers)
    listed = "{}, {} and {}".format(*numbers)
    text = rng.choice((
        "What is the {w} of {l}?", "Which is the {w} number: {l}?", "Which of {l} is the {w}?", "Find the {w} of {l}.",
        "Tell me the {w} of {l}.", "Give me the {w} number of {l}.",
    )).format(w=word, l=listed)  # fmt: skip
    rivals = tuple(str(number) for number in numbers if number != right)
    return Exchange(decorate(rng, text), f"The {word} is {right}.", str(right), rivals=rivals)


def order_exchange(rng: random.Random, numbers: list[int]) -> Exchange:
    up = rng.random() < 0.6
    if numbers == sorted(numbers, reverse=not up):
        numbers = numbers[::-1]  # nothing to do would be no question
    ordered = ", ".join(map(str, sorted(numbers, reverse=not up)))
    text = rng.choice((
        "Put these numbers in order, {d}: {l}.", "Sort these numbers, {d}: {l}.", "Write these numbers {d}: {l}.",
        "Order the numbers {l} {d}.", "Sort {l} {d}.", "Can you sort {l} {d}?",
    )).format(d="from small to large" if up else "from large to small", l=", ".join(map(str, numbers)))  # fmt: skip
    return Exchange(decorate(rng, text), ordered + ".", ordered, match="numbers")


def numbers_talk(rng: random.Random, split: str) -> list[Exchange]:
    exchanges = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        if rng.random() < 0.6:
            pair = rng.choice((pair_exchange, pair_exchange, claim_exchange))
            a, b = draw_numbers(rng, split, 2)
            exchanges.append(pair(rng, a, b))
        else:
            several = rng.choice((extreme_exchange, order_exchange))
            exchanges.append(several(rng, draw_numbers(rng, split, 3)))
    return exchanges
