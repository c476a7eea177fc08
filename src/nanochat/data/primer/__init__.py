"""The Primer: a procedural curriculum for very small chat models. Seeded, unlimited, and honest about what it tests.

`documents` are short prose for pretraining, `conversations` are chats for tuning, `SKILLS` ask held-out questions and
score the replies. Nothing here reads a file or a clock: the same arguments give the same text in every process.

How large the spaces are, and what of them only "val" may draw (a stable hash decides):

| skill | space | held out |
|---|---|---|
| identity, greetings | 86 questions in 5 wordings; 5 greetings in 9, other small talk 40 x 4 | 1 wording in 8 |
| greetings: what the user said | 420 statements | 1 statement in 10 |
| capitals | 150 facts (50 countries), 1,750 questions | 1 question in 8 |
| animals, things, opposites, calendar | 124, 130, 88, 69 facts; 1,140, 1,210, 1,230, 540 questions | 1 question in 8 |
| spelling | 347 words, 7,300 questions | 1 question in 8 |
| letters | 1,600 pairs of a word and a letter of it, 5,000 others | 1 pair in 10 |
| arithmetic | 500,000 + and -, 4,800 *, 760 / | 1 pair of operands in 10 |
| numbers | 4,950 pairs, 160,000 triples of the numbers 0 to 99 | 1 set in 10 |
| instructions | 500 to 10^9 lists of 1 to 4 out of 316 words | 1 list in 10 |
| stories | 4 plots, 10^5 to 10^6 each | 1 story in 10 |

Before the exact wording come small changes (a lower-case start, no question mark, "please"): they follow the split of
the question they change. Documents tell the same facts in prose and share the held-out items of the rule skills.
"""

import random
from collections.abc import Iterator, Sequence
from functools import partial

from nanochat.data.primer import chatter, knowledge, numbers, relation, tasks
from nanochat.data.primer import documents as prose
from nanochat.data.primer.skill import Conversation, Exchange, Question, Skill, check_split, is_held_out, messages

__all__ = ["SKILLS", "Conversation", "Question", "Skill", "conversations", "documents", "sample"]


def _greetings_talk(rng: random.Random, split: str) -> list[Exchange]:
    if rng.random() < 0.5:
        return chatter.remember(rng, split)
    return relation.talk(chatter.GREETINGS, rng, split)


_PHRASING = "Facts cannot be held out; held out are (fact, phrasing) pairs, so the exact question is new."
SKILLS: dict[str, Skill] = {
    skill.name: skill
    for skill in (
        Skill("identity", f"Who the model is and what it can do. {_PHRASING}",
              partial(relation.talk, chatter.IDENTITY)),
        Skill("greetings",
        "Greetings (held out: phrasings) and what the user just said (held out: what is said).",
              _greetings_talk),
        Skill("capitals", f"Capitals, countries and continents. {_PHRASING}",
              partial(relation.talk, knowledge.CAPITALS)),
        Skill("animals", f"Sounds, legs, young and homes of animals. {_PHRASING}",
              partial(relation.talk, knowledge.ANIMALS)),
        Skill("things", f"Colours, materials, purposes, kinds and shapes of things. {_PHRASING}",
              partial(relation.talk, knowledge.THINGS)),
        Skill("opposites", f"Words that mean the opposite. {_PHRASING}",
              partial(relation.talk, knowledge.OPPOSITES)),
        Skill("calendar", f"Days, months, seasons and their numbers. {_PHRASING}",
              partial(relation.talk, knowledge.CALENDAR)),
        Skill("spelling", f"Spelling letter by letter and first letters. {_PHRASING}",
              partial(relation.talk, knowledge.SPELLING)),
        Skill("letters", "Counting a letter in a word with the calculator. Held out: (word, letter) pairs.",
              tasks.letters_talk),
        Skill("arithmetic",
        "Sums and word problems with the calculator. Held out: operand pairs, in either order for + and *.",
              numbers.arithmetic_talk),
        Skill("numbers", "Comparing two or three numbers and putting three in order. Held out: sets of numbers.",
              numbers.numbers_talk),
        Skill("instructions", "Repeating, picking, reversing and leaving out words. Held out: the word lists.",
              tasks.instructions_talk),
        Skill("stories", "Questions about a story just told. Held out: the stories.", tasks.stories_talk),
    )
}  # fmt: skip

# How often each skill comes in conversations: what is hard for a small transformer comes more often.
_WEIGHTS = {
    "identity": 4, "greetings": 4, "capitals": 5, "animals": 4, "things": 4, "opposites": 3, "calendar": 6,
    "spelling": 7, "letters": 5, "arithmetic": 7, "numbers": 13, "instructions": 14, "stories": 13,
}  # fmt: skip
_SYSTEM = (
    "You are a helpful assistant.",
    "You are NanoChat.",
    "Answer the user's questions.",
    "Be brief and friendly.",
)
_SPOKEN_WEIGHTS = {**_WEIGHTS, "letters": 0, "arithmetic": 0}  # dialogues without tool calls


def documents(split: str = "train", seed: int = 0) -> Iterator[str]:
    """Endless plain documents of `split` ("train" or "val"), a few words to about a hundred each, ASCII."""
    check_split(split)
    rng = random.Random(f"primer/documents/{split}/{seed}")
    kinds, weights = list(prose.KINDS), list(prose.KINDS.values())
    names, name_weights = list(_SPOKEN_WEIGHTS), list(_SPOKEN_WEIGHTS.values())
    while True:
        if rng.random() < 0.25:
            text = prose.dialogue(SKILLS[rng.choices(names, name_weights)[0]].talk(rng, split))
        else:
            text = rng.choices(kinds, weights)[0](rng, split)
        # Facts are the same in both splits, so here whole texts are held out: no val document is in train.
        if is_held_out("documents", text) == (split == "val"):
            yield text


def conversations(split: str = "train", seed: int = 0) -> Iterator[Conversation]:
    """Endless chats of one to four exchanges of `split` ("train" or "val"); all their items are of that split."""
    check_split(split)
    rng = random.Random(f"primer/conversations/{split}/{seed}")
    names, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    while True:
        talk: Sequence[Exchange] = SKILLS[rng.choices(names, weights)[0]].talk(rng, split)
        if rng.random() < 0.2:  # the subject changes
            talk = [*talk, *SKILLS[rng.choices(names, weights)[0]].talk(rng, split)][:4]
        conversation = messages(talk)
        if rng.random() < 0.04:
            conversation.insert(0, {"role": "system", "content": rng.choice(_SYSTEM)})
        yield conversation


def sample(seed: int = 0) -> str:
    """Printable text: a few documents, then per skill one held-out question with its answer and score."""
    lines = ["Documents", "---------"]
    stream = documents("train", seed)
    lines += [f"{next(stream)}\n" for _ in range(8)]
    lines += ["Skills (held-out questions)", "---------------------------"]
    for skill in SKILLS.values():
        question = skill.questions("val", 1, seed)[0]
        lines.append(f"{skill.name}: {skill.description}")
        lines += [f"  {message['role']}: {_visible(message['content'])}" for message in question.conversation]
        if question.tool:
            lines.append(f"  calculator: {question.tool[0]} = {question.tool[1]}")
        lines.append(f"  assistant: {question.reference}")
        lines.append(f"  expects {question.answer!r}, scores {skill.score(question, question.reference)}\n")
    return "\n".join(lines)


def _visible(content: str | list[dict[str, str]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")
