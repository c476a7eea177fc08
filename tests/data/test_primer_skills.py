"""The Primer's skills: right replies score 1, wrong ones 0, and the facts are facts."""

import itertools
import re

import pytest

from nanochat.data import primer
from nanochat.data.primer import knowledge, tasks, words, world
from nanochat.data.primer.numbers import Sum
from nanochat.data.primer.skill import Question

SKILLS = list(primer.SKILLS.values())
by_name = pytest.mark.parametrize("skill", SKILLS, ids=list(primer.SKILLS))


def make(answer: str, match: str = "word", rivals: tuple[str, ...] = (), asked: str = "?", **more) -> Question:
    values = {"reference": answer, "tool": None, "accepted": ()} | more
    return Question("x", [{"role": "user", "content": asked}], answer, match=match, rivals=rivals, **values)


def score(question: Question, reply: str) -> float:
    return SKILLS[0].score(question, reply)


@by_name
@pytest.mark.parametrize("split", ["train", "val"])
def test_reference_replies_score_one(skill, split):
    for question in skill.questions(split, 300):
        assert skill.score(question, question.reference) == 1.0, question
        assert skill.score(question, "  " + question.reference.rstrip(".!") + "\n") == 1.0, question


@by_name
def test_wrong_replies_score_zero(skill):
    for question in skill.questions("val", 300):
        asked = question.conversation[-1]["content"]
        for reply in ("", "I do not know.", "Yes", asked, "e-l-e-p-h-a-n-t-s", "12345", " ".join(question.rivals)):
            if skill.score(question, reply) == 1.0:  # a plain yes is right, an echo may hold a one-word greeting
                assert question.answer.lower() in (reply.lower() if skill.name == "greetings" else "yes"), (
                    question,
                    reply,
                )


@by_name
def test_listing_all_candidates_scores_zero(skill):
    for question in skill.questions("val", 300):
        if question.rivals:
            assert skill.score(question, " ".join([question.answer, *question.rivals])) == 0.0, question


@by_name
def test_replies_of_other_questions_score_zero(skill):
    questions = skill.questions("val", 200)
    for one, other in itertools.pairwise(questions):
        if one.answer.lower() != other.answer.lower() and one.answer.lower() not in other.reference.lower():
            assert skill.score(one, other.reference) == 0.0, (one, other.reference)


@by_name
def test_questions_are_reproducible_and_vary(skill):
    questions = skill.questions("val", 400, seed=2)
    assert questions == skill.questions("val", 400, seed=2) != skill.questions("val", 400, seed=3)
    assert len({str(question.conversation) for question in questions}) >= 50
    assert all(question.skill == skill.name and question.conversation[-1]["role"] == "user" for question in questions)


@by_name
def test_description_says_what_is_held_out(skill):
    assert "held out" in skill.description.lower() and skill.description.endswith(".")


def test_the_demo_questions_can_be_drawn():
    asked = {
        name: {q.conversation[0]["content"] for q in primer.SKILLS[name].questions("val", 3000)}
        for name in ("capitals", "identity")
    }
    assert "What is the capital of France?" in asked["capitals"] and "Who are you?" in asked["identity"]


@pytest.mark.parametrize("name", ["arithmetic", "letters"])
def test_tool_outputs_are_what_python_says(name):
    for question in primer.SKILLS[name].questions("train", 1000):
        expression, output = question.tool
        assert re.fullmatch(r'\d+[-+*/]\d+|"[a-z]+"\.count\("[a-z]"\)', expression)
        assert str(eval(expression)) == output
        assert float(output) == float(question.answer)


def test_tool_calls_stand_before_the_text():
    for messages in itertools.islice(primer.conversations(), 2000):
        for message in messages:
            if isinstance(message["content"], list):
                call, output, text = message["content"]
                assert (call["type"], output["type"], text["type"]) == ("python", "python_output", "text")
                assert str(eval(call["text"])) == output["text"]


def test_a_sum_and_its_mirror_are_one_item():
    assert Sum(37, "*", 24).key == Sum(24, "*", 37).key == "24*37"
    assert Sum(37, "-", 24).key != Sum(24, "-", 37).key


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        (make("Paris", rivals=("Rome",)), ["paris", "It is Paris!"], ["Rome", "Paris or Rome", "Parisian"]),
        (make("four", rivals=("two", "six")), ["A dog has four legs.", "4"], ["two", "It has 2 or four."]),
        (make("b-a-t", "spelled"), ['"bat" is spelled b-a-t.', "B-A-T"], ["b-a-t-h", "b-a", "b-a-t or b-a-d", "bat"]),
        (make("888", "number", asked="What is 37 times 24?"), ["37 times 24 is 888.", "888.0"],
         ["37 times 24 is 24.", "888 or 889", "8888", "24", "888 is wrong, it is 37"]),
        (make("3, 7, 9", "numbers"), ["In order: 3, 7, 9.", "3 7 9"], ["3, 9, 7", "3, 7", "3, 7, 9, 9", "37, 9"]),
        (make("sun, cat", "exact"), ["Sun, cat."], ["cat, sun", "sun, cat, dog", "sun"]),
        (make("82", rivals=("47",), accepted=("82 is larger than 47",)), ["82", "82 is larger than 47.", "It is 82."],
         ["47", "82 is smaller than 47.", "47 is larger than 82.", "82 47"]),
    ],
)  # fmt: skip
def test_scoring_rules(question, right, wrong):
    assert [score(question, reply) for reply in right] == [1.0] * len(right)
    assert [score(question, reply) for reply in wrong] == [0.0] * len(wrong)


def test_facts():
    capitals = {country: capital for country, (capital, _) in world.COUNTRIES.items()}
    assert len(capitals) == len(set(capitals.values())) == 50
    assert (capitals["France"], capitals["Australia"], capitals["Kenya"]) == ("Paris", "Canberra", "Nairobi")
    assert (world.LEGS["spider"], world.LEGS["bee"], world.YOUNG["swan"]) == ("eight", "six", "cygnet")
    assert sum(map(int, world.MONTH_DAYS.values())) == 365 and list(world.MONTH_DAYS) == world.MONTHS
    assert len(world.DAYS) == 7 and len(world.MONTHS) == 12 and world.SIDES["octagon"] == "eight"


def test_each_question_has_one_answer():
    for relations in (knowledge.CAPITALS, knowledge.ANIMALS, knowledge.THINGS, knowledge.OPPOSITES, knowledge.CALENDAR):
        for relation in relations:
            assert len(relation.facts) == len(set(relation.facts))
    either = [word for pair in world.OPPOSITE_PAIRS for word in pair]
    assert len(either) == len(set(either))
    assert len(set(world.SOUNDS.values())) == len(world.SOUNDS)


def test_words_are_plain():
    assert 300 <= len(words.WORDS) == len(set(words.WORDS)) <= 400
    assert all(re.fullmatch("[a-z]{3,11}", word) for word in words.WORDS)


def test_story_questions_are_answered_in_the_story():
    import random

    rng = random.Random(0)
    for _ in range(500):
        story = tasks.draw_story(rng, "train")
        for question, reply, answer, rivals in story.questions:
            assert answer in story.text and answer in reply and answer not in rivals and question.endswith("?")
