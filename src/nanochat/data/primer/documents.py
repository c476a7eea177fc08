"""The Primer in prose: the same world as plain documents, so that pretraining carries most of the knowledge."""

import random
from collections.abc import Callable

from nanochat.data.primer import chatter, knowledge, numbers, tasks, words, world
from nanochat.data.primer.relation import Relation, any_relation
from nanochat.data.primer.skill import Exchange


def _facts(relations: list[Relation], rng: random.Random, sentences: int) -> str:
    """Several facts of one relation in a row, or all that the relations know of one subject."""
    relation = any_relation(relations, rng)
    if rng.random() < 0.5:
        subjects = rng.sample(list(relation.facts), min(sentences, len(relation.facts)))
        return " ".join(relation.sentence(rng, subject) for subject in subjects)
    subject = rng.choice(list(relation.facts))
    told = [other.sentence(rng, subject) for other in relations if subject in other.facts]
    told.append(relation.sentence(rng, subject))  # the same fact again, mostly in other words
    rng.shuffle(told)
    return " ".join(dict.fromkeys(told))


def capitals(rng: random.Random, split: str) -> str:
    return _facts(knowledge.CAPITALS, rng, rng.randint(2, 4))


def animals(rng: random.Random, split: str) -> str:
    return _facts(knowledge.ANIMALS, rng, rng.randint(2, 4))


def things(rng: random.Random, split: str) -> str:
    return _facts(knowledge.THINGS, rng, rng.randint(2, 4))


def opposites(rng: random.Random, split: str) -> str:
    return _facts(knowledge.OPPOSITES, rng, rng.randint(2, 4))


def calendar(rng: random.Random, split: str) -> str:
    if rng.random() < 0.25:
        names = rng.choice((world.DAYS, world.MONTHS, world.SEASONS))
        start = rng.randrange(len(names))
        return ", ".join((names * 2)[start : start + rng.randint(3, 7)]) + "."
    return _facts(knowledge.CALENDAR, rng, rng.randint(2, 4))


def spelling(rng: random.Random, split: str) -> str:
    return _facts(knowledge.SPELLING, rng, rng.randint(2, 5))


def identity(rng: random.Random, split: str) -> str:
    return " ".join(relation.sentence(rng, "") for relation in rng.sample(chatter.IDENTITY, rng.randint(1, 3)))


def counting(rng: random.Random, split: str) -> str:
    step = rng.choice((1, 1, 1, 2, 5, 10))
    start = rng.randrange(0, 90, step)
    count = rng.randint(5, 15)
    row = [number for number in range(start, start + count * step, step) if number < 100]
    if rng.random() < 0.3:
        row.reverse()
    return ", ".join(map(str, row)) + "."


def comparing(rng: random.Random, split: str) -> str:
    sentences = []
    for _ in range(rng.randint(2, 5)):
        low, high = sorted(numbers.draw_numbers(rng, split, 2))
        sentences.append(rng.choice((
            "{h} is larger than {l}.", "{l} is smaller than {h}.", "{h} is more than {l}.", "{l} is less than {h}.",
            "{h} is bigger than {l}.", "{h} is greater than {l}.", "{l} comes before {h}.",
            "Of {l} and {h}, {h} is the larger.",
            "Of {h} and {l}, {l} is the smaller.",
        )).format(l=low, h=high))  # fmt: skip
    return " ".join(sentences)


def ordering(rng: random.Random, split: str) -> str:
    given = numbers.draw_numbers(rng, split, 3)
    up, listed = sorted(given), ", ".join(map(str, given))
    rising, falling = ", ".join(map(str, up)), ", ".join(map(str, reversed(up)))
    return rng.choice((
        "The numbers {l} in order are {r}.", "From small to large: {l} becomes {r}.",
        "From large to small: {l} becomes {f}.",
        "The largest of {l} is {h}, and the smallest is {s}.", "Sorted from small to large, {l} is {r}.",
    )).format(l=listed, r=rising, f=falling, h=up[-1], s=up[0])  # fmt: skip


def sums(rng: random.Random, split: str) -> str:
    item = numbers.draw_sum(rng, split)
    way = rng.choice(numbers.WAYS[item.sign]).format(a=item.a, b=item.b)
    spoken = numbers.SPOKEN[item.sign].format(a=item.a, b=item.b)
    return rng.choice((
        "To find {w}, type {e} into the calculator. It shows {o}. So {s} is {v}.",
        "How much is {w}? The calculator turns {e} into {o}, so {s} is {v}.",
        "We write {w} as {e}. The calculator says {o}. The answer is {v}.",
    )).format(w=way, e=item.expression, o=item.output, s=spoken, v=item.value)  # fmt: skip


def problems(rng: random.Random, split: str) -> str:
    item = numbers.draw_sum(rng, split, largest=99)
    exchange = numbers.problem_exchange(rng, item)
    return f"{exchange.user} Type {item.expression} into the calculator. It shows {item.output}. {exchange.reply}"


def letters(rng: random.Random, split: str) -> str:
    word, letter = tasks.draw_letter(rng, split)
    call, reply = tasks.letter_call(word, letter), tasks.letter_reply(word, letter)
    return rng.choice((
        'The word "{w}" is spelled {s}. {r}',
        'To count the letter "{l}" in "{w}", type {c} into the calculator. It shows {n}. {r}',
    )).format(w=word, s="-".join(word), l=letter, c=call, n=word.count(letter), r=reply)  # fmt: skip


def stories(rng: random.Random, split: str) -> str:
    story = tasks.draw_story(rng, split)
    chosen = rng.sample(story.questions, rng.randint(0, 3))
    return " ".join([story.text, *(f"{question} {reply}" for question, reply, *_ in chosen)])


def lists(rng: random.Random, split: str) -> str:
    """Words in a row, said again: copying is the one algorithm that every other skill leans on."""
    order = tasks.draw_order(rng, split)
    return rng.choice(("Task: {t}\nAnswer: {r}", "{t}\n{r}", "Anna said: {t} Tom said: {r}")).format(
        t=order.text, r=order.reply
    )


def greeting(rng: random.Random, split: str) -> str:
    first, second = rng.sample(list(words.NAMES), 2)
    return rng.choice((
        '"Hello, my name is {a}," said {a}. "Nice to meet you, {a}!" said {b}.',
        '{a} met {b}. "Good morning, {b}!" said {a}. "Good morning, {a}!" said {b}.',
        '"How are you, {a}?" said {b}. "I am well, thank you," said {a}.',
        '"Thank you, {a}!" said {b}. "You are welcome!" said {a}.',
        '"Goodbye, {a}!" said {b}. "Goodbye, {b}!" said {a}. "Have a nice day."',
    )).format(a=first, b=second)  # fmt: skip


# How often each kind of document comes: copying and comparing need far more practice than facts do.
KINDS: dict[Callable[[random.Random, str], str], int] = {
    capitals: 8, animals: 8, things: 8, opposites: 4, calendar: 10, spelling: 14, identity: 2, counting: 4,
    comparing: 14, ordering: 9, sums: 3, problems: 2, letters: 3, stories: 18, lists: 16, greeting: 2,
}  # fmt: skip


def dialogue(talk: list[Exchange]) -> str:
    """A talk without tool calls as a written question and answer."""
    return "\n".join(f"Question: {exchange.user}\nAnswer: {exchange.reply}" for exchange in talk)
