"""Letters counted with the calculator, simple instructions, and small stories with questions."""

import random
from typing import NamedTuple

from nanochat.data.primer import words
from nanochat.data.primer.relation import with_article
from nanochat.data.primer.skill import Exchange, decorate, draw_item

_COUNT = (
    'How many times does the letter "{l}" appear in "{w}"?', 'How many "{l}" are in "{w}"?',
    'Count the letter "{l}" in "{w}".',
    'How often is the letter "{l}" in the word "{w}"?', 'How many letters "{l}" does "{w}" have?',
    'How many of the letter "{l}" are in "{w}"?',
    'In the word "{w}", how many times is there "{l}"?', 'Count how often "{l}" is in "{w}".',
    'How many times is "{l}" in "{w}"?',
    'What is the number of "{l}" in the word "{w}"?',
)  # fmt: skip


def draw_letter(rng: random.Random, split: str) -> tuple[str, str]:
    """(word, letter): mostly a letter of the word."""

    def propose() -> tuple[str, str]:
        word = rng.choice(words.WORDS)
        return word, rng.choice(word) if rng.random() < 0.85 else rng.choice("abcdefghijklmnoprstuwy")

    return draw_item("letters", split, propose, " ".join)


def letter_call(word: str, letter: str) -> str:
    return f'"{word}".count("{letter}")'


def letter_reply(word: str, letter: str) -> str:
    count = word.count(letter)
    return f'The letter "{letter}" appears {count} {"time" if count == 1 else "times"} in "{word}".'


def letters_talk(rng: random.Random, split: str) -> list[Exchange]:
    exchanges = []
    for _ in range(rng.choice((1, 1, 2))):
        word, letter = draw_letter(rng, split)
        count = str(word.count(letter))
        question = rng.choice(_COUNT).format(l=letter, w=word)
        tool = (letter_call(word, letter), count)
        exchanges.append(
            Exchange(decorate(rng, question), letter_reply(word, letter), count, match="number", tool=tool)
        )
    return exchanges


class Order(NamedTuple):
    """An instruction, the exact reply it asks for, and the item that is held out."""

    text: str
    reply: str
    item: str


_REPEAT = (
    "Repeat after me: {x}",
    "Say: {x}",
    "Repeat these words: {x}",
    "Repeat: {x}",
    "Please repeat: {x}",
    "Say exactly this: {x}",
)
_TIMES = (
    'Say "{x}" {n} times.',
    'Write "{x}" {n} times.',
    'Repeat "{x}" {n} times.',
    'Give me "{x}" {n} times.',
    'Please say "{x}" {n} times.',
)
_PICK = (
    "What is the {o} word of: {x}?",
    "Tell me the {o} of these words: {x}.",
    "Which word is {o} in this list: {x}?",
    "Give me the {o} word: {x}.",
    "Say only the {o} word: {x}.",
)
_BACK = (
    "Say these words backwards: {x}.",
    "Say this list in reverse order: {x}.",
    "Reverse this list: {x}.",
    "Write these words in reverse: {x}.",
    "Turn this list around: {x}.",
)
_SWAP = (
    "Swap these two words: {x}.",
    "Say these two words the other way round: {x}.",
    "Exchange these two words: {x}.",
)
_DROP = (
    "Say this list without {d}: {x}.",
    "Leave out {d}: {x}.",
    "Remove {d} from this list: {x}.",
    "Take {d} out of this list: {x}.",
)


def propose_order(rng: random.Random) -> Order:
    kind = rng.randrange(6)
    if kind == 0:
        chosen = rng.sample(words.PLAIN_WORDS, rng.choice((2, 3, 3, 4)))
        phrase = " ".join(chosen)
        return Order(rng.choice(_REPEAT).format(x=phrase), phrase, " ".join(sorted(chosen)))
    if kind == 1:
        word, times = rng.choice(words.PLAIN_WORDS), rng.randint(2, 4)
        number = ("two", "three", "four")[times - 2]
        return Order(rng.choice(_TIMES).format(x=word, n=number), " ".join([word] * times), f"{word} {times}")
    chosen = rng.sample(words.PLAIN_WORDS, 2 if kind == 3 else 3)
    listed, item = ", ".join(chosen), " ".join(sorted(chosen))
    if kind == 2:
        place = rng.randrange(3)
        text = rng.choice(_PICK).format(o=("first", "second", "last")[place], x=listed)
        return Order(text, chosen[place], item)
    if kind == 3:
        return Order(rng.choice(_SWAP).format(x=listed), ", ".join(reversed(chosen)), item)
    if kind == 4:
        return Order(rng.choice(_BACK).format(x=listed), ", ".join(reversed(chosen)), item)
    dropped = rng.choice(chosen)
    kept = ", ".join(word for word in chosen if word != dropped)
    return Order(rng.choice(_DROP).format(d=dropped, x=listed), kept, item)


def draw_order(rng: random.Random, split: str) -> Order:
    return draw_item("instructions", split, lambda: propose_order(rng), lambda order: order.item)


def instructions_talk(rng: random.Random, split: str) -> list[Exchange]:
    orders = [draw_order(rng, split) for _ in range(rng.choice((1, 1, 1, 2)))]
    return [Exchange(order.text, order.reply, order.reply, match="exact") for order in orders]


class Story(NamedTuple):
    """A few sentences and (question, reply, answer, rivals) about them."""

    text: str
    questions: list[tuple[str, str, str, tuple[str, ...]]]


def _without(values: tuple[str, ...], answer: str) -> tuple[str, ...]:
    return tuple(value for value in values if value != answer)


def _pet_story(rng: random.Random) -> Story:
    name, pet, called, colour = (
        rng.choice(list(words.NAMES)), rng.choice(words.STORY_PETS), rng.choice(words.STORY_PET_NAMES),
        rng.choice(words.STORY_COLOURS[4:7])
    )  # fmt: skip
    pronoun, possessive = words.NAMES[name]
    text = rng.choice((
        "{n} has {ap}. The {p} is {c} and is called {d}.",
        "{n} got {ap} for {q} birthday. It is {c}. {s} called it {d}.",
        "{n} loves {q} {p}. The {p} is called {d} and it is {c}.",
    )).format(n=name, p=pet, ap=with_article(pet), d=called, c=colour, s=pronoun, q=possessive)  # fmt: skip
    return Story(text, [
        (f"What is the name of {name}'s {pet}?", f"The {pet} is called {called}.",
        called, _without(words.STORY_PET_NAMES, called)),
        (f"What colour is the {pet}?", f"The {pet} is {colour}.", colour, _without(words.STORY_COLOURS, colour)),
        (f"Who has the {pet}?", f"{name} has the {pet}.", name, _without(tuple(words.NAMES), name)),
        (f"What kind of animal is {called}?", f"{called} is {with_article(pet)}.",
        pet, _without(words.STORY_PETS, pet)),
    ])  # fmt: skip


def _find_story(rng: random.Random) -> Story:
    finder, friend = rng.sample(list(words.NAMES), 2)
    thing, spot, colour = (
        rng.choice(words.STORY_THINGS[:9]),
        rng.choice(words.STORY_SPOTS[:9]),
        rng.choice(words.STORY_COLOURS),
    )
    pronoun = words.NAMES[finder][0]
    text = rng.choice((
        "{f} found {ac} {t} under the {s}. {p} gave it to {g}.",
        "One day {f} saw {ac} {t} under the {s}. {p} gave the {t} to {g}.",
        "Under the {s} there was {ac} {t}. {f} found it and gave it to {g}.",
    )).format(f=finder, g=friend, t=thing, s=spot, ac=with_article(colour), p=pronoun)  # fmt: skip
    names = tuple(words.NAMES)
    return Story(text, [
        ("Where was the " + thing + "?", f"The {thing} was under the {spot}.", spot, _without(words.STORY_SPOTS, spot)),
        (f"Who found the {thing}?", f"{finder} found the {thing}.", finder, _without(names, finder)),
        (f"Who got the {thing}?", f"{friend} got the {thing}.", friend, _without(names, friend)),
        (f"What did {finder} find?", f"{finder} found {with_article(colour)} {thing}.",
        thing, _without(words.STORY_THINGS, thing)),
        (f"What colour was the {thing}?", f"The {thing} was {colour}.", colour, _without(words.STORY_COLOURS, colour)),
    ])  # fmt: skip


def _trip_story(rng: random.Random) -> Story:
    first, second = rng.sample(list(words.NAMES), 2)
    here, there = rng.sample(words.STORY_PLACES, 2)
    text = rng.choice((
        "{a} went to the {x}. {b} went to the {y}.", "In the morning {a} went to the {x}, and {b} went to the {y}.",
        "{a} and {b} said goodbye. Then {a} went to the {x} and {b} went to the {y}.",
    )).format(a=first, b=second, x=here, y=there)  # fmt: skip
    names = tuple(words.NAMES)
    questions = []
    for name, place in ((first, here), (second, there)):
        questions.append(
            (f"Where did {name} go?", f"{name} went to the {place}.", place, _without(words.STORY_PLACES, place))
        )
        questions.append((f"Who went to the {place}?", f"{name} went to the {place}.", name, _without(names, name)))
    return Story(text, questions)


def _meal_story(rng: random.Random) -> Story:
    first, second = rng.sample(list(words.NAMES), 2)
    one, two = rng.sample(words.STORY_FOODS, 2)
    meal = rng.choice(("breakfast", "lunch", "dinner"))
    text = rng.choice((
        "At {m}, {a} ate {x} and {b} ate {y}.", "{a} and {b} sat down for {m}. {a} ate {x}. {b} ate {y}.",
        "For {m}, {a} had {x}. {b} ate {y}, and {a} ate {x}.",
    )).format(m=meal, a=first, b=second, x=one, y=two)  # fmt: skip
    names = tuple(words.NAMES)
    questions = []
    for name, food in ((first, one), (second, two)):
        questions.append((f"What did {name} eat?", f"{name} ate {food}.", food, _without(words.STORY_FOODS, food)))
        questions.append((f"Who ate {food}?", f"{name} ate {food}.", name, _without(names, name)))
    return Story(text, questions)


_STORIES = (_pet_story, _find_story, _trip_story, _meal_story)


def draw_story(rng: random.Random, split: str) -> Story:
    return draw_item("stories", split, lambda: rng.choice(_STORIES)(rng), lambda story: story.text)


def stories_talk(rng: random.Random, split: str) -> list[Exchange]:
    """A story with its first question, now and then a second question about the same story."""
    story = draw_story(rng, split)
    asked = rng.sample(story.questions, rng.choice((1, 1, 2)))
    exchanges = [Exchange(question, reply, answer, rivals) for question, reply, answer, rivals in asked]
    opening = rng.choice(("{t} {q}", "{t}\n{q}", "Here is a story. {t} {q}", "Read this: {t} {q}"))
    first = exchanges[0]
    user = opening.format(t=story.text, q=first.user)
    return [Exchange(user, first.reply, first.answer, first.rivals), *exchanges[1:]]
