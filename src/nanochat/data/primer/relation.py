"""A relation: a table of facts together with the ways to ask for them, to answer, and to tell them in prose.

In the templates {x} is the subject and {y} the value; {ax} and {ay} are the same with their article ("a dog", "an owl",
or none for mass nouns and names).
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from nanochat.data.primer.skill import Exchange, Match, decorate, is_held_out
from nanochat.data.primer.world import MASS_NOUNS


@dataclass(frozen=True, eq=False)
class Relation:
    """`ask` stands alone; `follow` continues after another question of the relation; `prose` is for documents."""

    name: str
    facts: Mapping[str, str]
    ask: tuple[str, ...]
    reply: Sequence[str]
    prose: Sequence[str]
    follow: tuple[str, ...] = ()
    rivals: Sequence[str] | None = None  # default: the other values of the table
    match: Match = "word"
    lower: bool = True  # names may lose their capitals
    one_in: int = 8  # one (fact, phrasing) pair in eight is "val"

    def exchange(self, rng: random.Random, subject: str, template: str) -> Exchange:
        value = self.facts[subject]
        rivals = set(self.facts.values()) if self.rivals is None else set(self.rivals)
        return Exchange(
            user=decorate(rng, fill(template, subject, value), self.lower),
            reply=fill(rng.choice(self.reply), subject, value),
            answer=value,
            rivals=tuple(sorted(rivals - {value, subject})),  # the reply may name the subject
            match=self.match,
        )

    def sentence(self, rng: random.Random, subject: str) -> str:
        return fill(rng.choice(self.prose), subject, self.facts[subject])


def with_article(noun: str) -> str:
    if noun == "sky":
        return "the sky"
    if noun in MASS_NOUNS or noun[:1].isupper():
        return noun
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


def fill(template: str, subject: str, value: str) -> str:
    text = template.format(x=subject, y=value, ax=with_article(subject), ay=with_article(value))
    return text[0].upper() + text[1:] if text else text


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9'+]+", text.lower()))


@cache
def askable(relation: Relation, templates: Sequence[str], split: str) -> list[tuple[str, str]]:
    """All (subject, template) pairs of the relation that belong to `split`.

    The words of the question decide, whatever its skill: "And a cow?" is held out for sounds and for legs, or for none.
    """
    return [
        (subject, template)
        for subject in relation.facts
        for template in templates
        if is_held_out("knowledge", _plain(fill(template, subject, relation.facts[subject])), relation.one_in)
        == (split == "val")
    ]


def any_relation(relations: Sequence[Relation], rng: random.Random) -> Relation:
    """One of the relations, so that every fact comes equally often."""
    return rng.choices(relations, [len(relation.facts) for relation in relations])[0]


def talk(relations: Sequence[Relation], rng: random.Random, split: str) -> list[Exchange]:
    """A question, now and then followed by one or two more about the same relation ("And of Italy?")."""
    relation = any_relation([one for one in relations if askable(one, one.ask, split)], rng)
    subject, template = rng.choice(askable(relation, relation.ask, split))
    exchanges = [relation.exchange(rng, subject, template)]
    follow = [pair for pair in askable(relation, relation.follow, split) if pair[0] != subject]
    if follow and rng.random() < 0.5:
        for subject, template in rng.sample(follow, min(len(follow), rng.choice((1, 1, 2)))):
            exchanges.append(relation.exchange(rng, subject, template))
    return exchanges
