"""What the Primer knows about the world: each table of facts with the wordings of its questions, replies and prose."""

from collections.abc import Sequence

from nanochat.data.primer import world
from nanochat.data.primer.relation import Relation
from nanochat.data.primer.words import WORDS

CAPITALS = [
    Relation(
        "capital",
        {country: capital for country, (capital, _) in world.COUNTRIES.items()},
        ask=(
            "What is the capital of {x}?", "What's the capital of {x}?", "Which city is the capital of {x}?",
            "Tell me the capital of {x}.", "Do you know the capital of {x}?", "Can you name the capital of {x}?",
            "I need the capital of {x}.", "What is the capital city of {x}?", "Name the capital of {x}.",
            "What is {x}'s capital?", "The capital of {x} is which city?", "Please name the capital city of {x}.",
        ),
        follow=("And of {x}?", "And the capital of {x}?", "What about {x}?", "And {x}?", "How about {x}?"),
        reply=("The capital of {x} is {y}.", "The capital of {x} is {y}.", "It is {y}."),
        prose=(
            "The capital of {x} is {y}.", "{y} is the capital of {x}.", "{x} has a capital called {y}.",
            "The capital city of {x} is {y}.", "In {x}, the capital is {y}.", "{x}'s capital is {y}.",
        ),
    ),
    Relation(
        "country",
        {capital: country for country, (capital, _) in world.COUNTRIES.items()},
        ask=(
            "Which country has the capital {x}?", "{x} is the capital of which country?", "In which country is {x}?",
            "Where is {x}?", "What country is {x} the capital of?", "Tell me in which country {x} is.",
        ),
        follow=("And {x}?", "What about {x}?", "And where is {x}?"),
        reply=("{x} is the capital of {y}.", "{x} is in {y}."),
        prose=("{x} is a city in {y}.", "The city of {x} is in {y}.", "{x} is the capital of {y}."),
    ),
    Relation(
        "continent",
        {country: continent for country, (_, continent) in world.COUNTRIES.items()},
        ask=(
            "On which continent is {x}?", "Which continent is {x} in?", "Where in the world is {x}?",
            "What continent does {x} belong to?", "In which part of the world is {x}?", "Tell me the continent of {x}.",
        ),
        follow=("And {x}?", "What about {x}?", "And where is {x}?"),
        reply=("{x} is in {y}.",),
        prose=("{x} is a country in {y}.", "{x} is in {y}.", "You find {x} in {y}.", "The country {x} lies in {y}."),
    ),
]  # fmt: skip

ANIMALS = [
    Relation(
        "sound",
        world.SOUNDS,
        ask=(
            "What does {ax} do to make a sound?", "Which sound does {ax} make?", "What sound does {ax} make?",
            "How does {ax} sound?", "What noise does {ax} make?", "Tell me the sound of {ax}.",
            "Do you know what sound {ax} makes?",
        ),
        follow=("And {ax}?", "What about {ax}?", "And the sound of {ax}?"),
        reply=("{ax} {y}.",),
        prose=("{ax} {y}.", "The {x} {y}.", "When {ax} makes a sound, it {y}.", "Listen, the {x} {y}!"),
    ),
    Relation(
        "caller",
        {sound: animal for animal, sound in world.SOUNDS.items()},
        ask=(
            "Which animal {x}?", "What animal {x}?", "Name an animal that {x}.", "Which of the animals {x}?",
            "Tell me which animal {x}.", "Who {x} on the farm or in the wild?",
        ),
        follow=("And which animal {x}?", "And who {x}?", "Which one {x}?"),
        reply=("{ay} {x}.",),
        prose=("The animal that {x} is the {y}.", "It {x}, so it is {ay}.", "{ay} {x}."),
    ),
    Relation(
        "legs",
        world.LEGS,
        ask=(
            "How many legs does {ax} have?", "How many legs has {ax}?", "Tell me how many legs {ax} has.",
            "What is the number of legs of {ax}?", "Do you know how many legs {ax} has?", "Count the legs of {ax}.",
        ),
        follow=("And {ax}?", "What about {ax}?", "And how many has {ax}?"),
        reply=("{ax} has {y} legs.",),
        prose=("{ax} has {y} legs.", "The {x} has {y} legs.", "There are {y} legs on {ax}.",
        "{ax} is an animal with {y} legs."),
        rivals=("no", "two", "four", "six", "eight"),
    ),
    Relation(
        "young",
        world.YOUNG,
        ask=(
            "What is a young {x} called?", "What do you call a baby {x}?", "What is the young of {ax} called?",
            "What is a baby {x} called?", "Tell me the word for a young {x}.", "How do we call a young {x}?",
        ),
        follow=("And a young {x}?", "And a baby {x}?", "What about {ax}?"),
        reply=("A young {x} is called {ay}.", "A young {x} is {ay}."),
        prose=("A young {x} is called {ay}.", "A baby {x} is {ay}.", "The {x} looks after its {y}.",
        "{ay} grows up to be {ax}."),
    ),
    Relation(
        "home",
        world.HOMES,
        ask=(
            "Where does {ax} live?", "What is the home of {ax}?", "Where is the home of {ax}?",
            "In what place does {ax} live?", "Tell me where {ax} lives.", "Where would you find {ax}?",
        ),
        follow=("And {ax}?", "What about {ax}?", "And where does {ax} live?"),
        reply=("{ax} lives in a {y}.", "The home of {ax} is a {y}."),
        prose=("{ax} lives in a {y}.", "The home of {ax} is a {y}.", "The {x} goes back to its {y}.",
        "Look for {ax} in its {y}."),
    ),
]  # fmt: skip

THINGS = [
    Relation(
        "colour",
        world.COLOURS,
        ask=(
            "What colour is {ax}?", "Which colour is {ax}?", "What is the colour of {ax}?",
            "Tell me the colour of {ax}.", "Do you know what colour {ax} is?", "What color is {ax}?",
            "What colour does {ax} have?",
        ),
        follow=("And {ax}?", "What about {ax}?", "And what colour is {ax}?"),
        reply=("{ax} is {y}.", "The colour of {ax} is {y}."),
        prose=("{ax} is {y}.", "The colour of {ax} is {y}.", "{ax} looks {y}.", "You can see that {ax} is {y}."),
    ),
    Relation(
        "material",
        world.MATERIALS,
        ask=(
            "What is {ax} made of?", "What is {ax} often made of?", "Which material is {ax} made of?",
            "Tell me what {ax} is made of.", "What do people make {ax} from?", "From what is {ax} made?",
        ),
        follow=("And {ax}?", "What about {ax}?", "And what is {ax} made of?"),
        reply=("{ax} is often made of {y}.", "{ax} is made of {y}."),
        prose=("{ax} is often made of {y}.", "People make {ax} from {y}.", "This {x} is made of {y}."),
    ),
    Relation(
        "purpose",
        world.PURPOSES,
        ask=(
            "What do you use to {x}?", "What do I need to {x}?", "Which thing helps you to {x}?",
            "What do people use to {x}?", "I want to {x}. What do I need?", "How can I {x}?",
        ),
        follow=("And to {x}?", "And what do I need to {x}?", "And if I want to {x}?"),
        reply=("To {x}, use the {y}.",),
        prose=("To {x}, use the {y}.", "With the {y} you can {x}.", "The {y} is there to {x}.",
        "If you want to {x}, take the {y}."),
    ),
    Relation(
        "kind",
        world.KINDS,
        ask=(
            "What kind of thing is {ax}?", "What is {ax}?", "Tell me what {ax} is.", "What sort of thing is {ax}?",
            "Do you know what {ax} is?", "Explain what {ax} is.",
        ),
        follow=("And {ax}?", "What about {ax}?", "And what is {ax}?"),
        reply=("{ax} is {ay}.",),
        prose=("{ax} is {ay}.", "Everyone knows that {ax} is {ay}.", "We call {ax} {ay}."),
    ),
    Relation(
        "sides",
        world.SIDES,
        ask=(
            "How many sides does {ax} have?", "How many sides has {ax}?", "Tell me how many sides {ax} has.",
            "What is the number of sides of {ax}?", "How many corners does {ax} have?", "Count the sides of {ax}.",
        ),
        follow=("And {ax}?", "What about {ax}?", "And how many has {ax}?"),
        reply=("{ax} has {y} sides.",),
        prose=("{ax} has {y} sides.", "The {x} has {y} sides and {y} corners.",
        "A shape with {y} sides and corners: {ax}."),
    ),
]  # fmt: skip

_OPPOSITES = {a: b for pair in world.OPPOSITE_PAIRS for a, b in (pair, pair[::-1])}
OPPOSITES = [
    Relation(
        "opposite",
        _OPPOSITES,
        ask=(
            'What is the opposite of "{x}"?', "What is the opposite of {x}?", "Tell me the opposite of {x}.",
            'Which word is the opposite of "{x}"?', "Do you know the opposite of {x}?",
            'Say the opposite of "{x}".',
            "Give me the opposite of {x}.", 'Which word means the opposite of "{x}"?',
            'Name the opposite of "{x}".', "The opposite of {x} is what?",
        ),
        follow=("And of {x}?", "And the opposite of {x}?", "What about {x}?", 'And of "{x}"?'),
        reply=("The opposite of {x} is {y}.", "The opposite of {x} is {y}.", "It is {y}."),
        prose=(
            "The opposite of {x} is {y}.", 'The word "{x}" is the opposite of "{y}".', "{x} and {y} are opposites.",
            '"{x}" and "{y}" mean opposite things.', "First {x}, then {y}: opposites.",
        ),
    )
]  # fmt: skip


def _next(names: Sequence[str]) -> dict[str, str]:
    return {name: names[(i + 1) % len(names)] for i, name in enumerate(names)}


def _sequence(kind: str, names: Sequence[str]) -> list[Relation]:
    after = _next(names)
    return [
        Relation(
            f"{kind} after",
            after,
            ask=(
                f"Which {kind} comes after {{x}}?", f"What {kind} comes after {{x}}?", "What comes after {x}?",
                f"Which {kind} follows {{x}}?", f"Tell me the {kind} after {{x}}.",
                f"After {{x}}, which {kind} comes next?",
            ),
            follow=("And after {x}?", "And what comes after {x}?"),
            reply=("{y} comes after {x}.", "After {x} comes {y}."),
            prose=("After {x} comes {y}.", "{y} comes after {x}.", f"The {kind} after {{x}} is {{y}}.",
            "{x} is followed by {y}."),
        ),
        Relation(
            f"{kind} before",
            {value: name for name, value in after.items()},
            ask=(
                f"Which {kind} comes before {{x}}?", f"What {kind} comes before {{x}}?", "What comes before {x}?",
                f"Tell me the {kind} before {{x}}.", f"Before {{x}}, which {kind} is it?",
                f"What is the {kind} just before {{x}}?",
            ),
            follow=("And before {x}?", "And what comes before {x}?"),
            reply=("{y} comes before {x}.", "Before {x} comes {y}."),
            prose=("Before {x} comes {y}.", "{y} comes before {x}.", f"The {kind} before {{x}} is {{y}}."),
        ),
    ]  # fmt: skip


CALENDAR = [
    *_sequence("day", world.DAYS),
    *_sequence("month", world.MONTHS),
    *_sequence("season", world.SEASONS),
    Relation(
        "month days",
        world.MONTH_DAYS,
        ask=(
            "How many days does {x} have?", "How many days has {x}?", "How many days are there in {x}?",
            "Tell me how many days {x} has.", "How long is {x}?", "What is the number of days in {x}?",
        ),
        follow=("And {x}?", "What about {x}?", "And how many has {x}?"),
        reply=("{x} has {y} days.",),
        prose=("{x} has {y} days.", "There are {y} days in {x}.", "The month of {x} is {y} days long."),
    ),
]  # fmt: skip
CALENDAR += [
    Relation(
        key,
        {key.split("|")[1]: amount},
        ask=(
            f"How many {key.split('|')[0]} are there in {{x}}?", f"How many {key.split('|')[0]} does {{x}} have?",
            f"How many {key.split('|')[0]} are in {{x}}?", f"How many {key.split('|')[0]} make up {{x}}?",
            f"Tell me how many {key.split('|')[0]} {{x}} has.",
            f"Do you know how many {key.split('|')[0]} are in {{x}}?",
        ),
        reply=(f"There are {{y}} {key.split('|')[0]} in {{x}}.",),
        prose=(f"There are {{y}} {key.split('|')[0]} in {{x}}.", f"{{x}} has {{y}} {key.split('|')[0]}."),
        rivals=sorted(set(world.AMOUNTS.values()) | {"30", "31"}),
    )
    for key, amount in world.AMOUNTS.items()
]  # fmt: skip

SPELLING = [
    Relation(
        "spell",
        {word: "-".join(word) for word in WORDS},
        ask=(
            'How do you spell "{x}"?', 'Spell "{x}".', 'Spell the word "{x}".', 'How is "{x}" spelled?',
            'Can you spell "{x}"?', 'Please spell "{x}" for me.', 'Spell "{x}" letter by letter.',
            'Which letters are in the word "{x}"?', 'How do I write "{x}" letter by letter?',
            'What is the spelling of "{x}"?',
        ),
        follow=('And "{x}"?', 'And the word "{x}"?', 'Now spell "{x}".'),
        reply=('"{x}" is spelled {y}.',),
        prose=('"{x}" is spelled {y}.', 'The word "{x}" is spelled {y}.', 'Spell "{x}": {y}.', 'Write "{x}" as {y}.'),
        match="spelled",
        rivals=(),
        lower=False,
    ),
    Relation(
        "first letter",
        {word: word[0] for word in WORDS},
        ask=(
            'What is the first letter of "{x}"?', 'Which letter does "{x}" begin with?',
            'What letter does "{x}" start with?',
            'Tell me the first letter of "{x}".', 'With which letter does the word "{x}" begin?',
            'Give me the first letter of "{x}".',
        ),
        follow=('And of "{x}"?', 'And the first letter of "{x}"?'),
        reply=('The first letter of "{x}" is "{y}".',),
        prose=('The first letter of "{x}" is "{y}".', 'The word "{x}" begins with "{y}".',
        '"{x}" starts with the letter "{y}".'),
        match="letter",
        rivals=(),
        lower=False,
    ),
]  # fmt: skip
