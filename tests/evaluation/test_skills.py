"""The skills' evaluation with an engine whose model says what a script has it say."""

from types import SimpleNamespace

import pytest
from scripted_model import ScriptedModel, byte_tokenizer

from nanochat.common import UserError
from nanochat.data.primer import SKILLS
from nanochat.evaluation.skills import MAX_NEW_TOKENS, SkillReport, evaluate_skills
from nanochat.inference.engine import Engine


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def engine_that_says(tokenizer, reply_of, per_skill, seed):
    """An engine that answers each question with `reply_of(skill, question)`."""
    scripts = {}
    for name, skill in SKILLS.items():
        for question in skill.questions("val", per_skill, seed):
            prompt = tokenizer.apply_chat_template(question.conversation, add_generation_prompt=True)["input_ids"]
            reply = tokenizer.encode_ordinary_batch([reply_of(name, question)])[0]
            scripts[tuple(prompt)] = [*reply, tokenizer.eos_token_id]
    return Engine(ScriptedModel(scripts, context_length=4096), tokenizer)


def test_the_right_answers_score_one_everywhere(tokenizer):
    heard = []
    engine = engine_that_says(tokenizer, lambda name, question: question.reference, 3, seed=5)
    report = evaluate_skills(engine, 3, seed=5, progress=lambda name, score: heard.append((name, score)))
    assert report.scores == dict.fromkeys(SKILLS, 1.0)
    assert report.average == 1.0
    assert heard == list(report.scores.items())
    assert [name for name, _ in heard] == list(SKILLS)


def test_one_skill_wrong_costs_its_share_and_no_other_s(tokenizer):
    engine = engine_that_says(
        tokenizer, lambda name, question: "no idea" if name == "capitals" else question.reference, 2, seed=0
    )
    report = evaluate_skills(engine, 2, seed=0)
    assert report.scores == {name: float(name != "capitals") for name in SKILLS}
    assert report.average == pytest.approx(1 - 1 / len(SKILLS))
    assert all(answer.result.text == "no idea" for answer in report.answers["capitals"])


def test_each_question_gets_its_own_answer(tokenizer):
    engine = engine_that_says(tokenizer, lambda name, question: question.reference, 4, seed=1)
    report = evaluate_skills(engine, 4, seed=1)
    for name, answers in report.answers.items():
        assert [answer.question for answer in answers] == SKILLS[name].questions("val", 4, 1)
        assert all(answer.result.text == answer.question.reference for answer in answers)


def test_endless_answers_are_cut(tokenizer):
    engine = engine_that_says(tokenizer, lambda name, question: "x" * 500, 1, seed=0)
    report = evaluate_skills(engine, 1, seed=0)
    results = [answer.result for answers in report.answers.values() for answer in answers]
    assert {result.finish_reason for result in results} == {"length"}
    assert {len(result.token_ids) for result in results} == {MAX_NEW_TOKENS}


def test_questions_beyond_the_context_are_wrong_and_the_others_are_asked(tokenizer):
    engine = engine_that_says(tokenizer, lambda name, question: question.reference, 20, seed=1)
    engine.context_length = 120  # bytes, here: stories are longer, the opposite of a word is not
    report = evaluate_skills(engine, 20, seed=1)
    assert 0 < report.scores["stories"] < 1
    unanswered = [a for answers in report.answers.values() for a in answers if not a.result.token_ids]
    assert unanswered and all(a.score == 0 and len(engine.encode(a.question.conversation)) >= 120 for a in unanswered)


def test_reference_answers_have_room():
    """The longest answer that a skill asks for, in bytes (a tokenizer needs fewer tokens), is under the limit."""
    longest = max(len(question.reference) for skill in SKILLS.values() for question in skill.questions("val", 200, 0))
    assert longest <= MAX_NEW_TOKENS


def test_the_average_counts_every_skill_the_same():
    def answers(*scores):
        return [SimpleNamespace(score=score) for score in scores]

    report = SkillReport({"a": answers(1.0, 0.0), "b": answers(1.0), "c": answers(0.0, 0.0, 0.0, 0.0)})
    assert report.scores == {"a": 0.5, "b": 1.0, "c": 0.0}
    assert report.average == 0.5


@pytest.mark.parametrize("count", [0, -1])
def test_no_questions_no_scores(tokenizer, count):
    engine = engine_that_says(tokenizer, lambda name, question: question.reference, 1, seed=0)
    with pytest.raises(UserError, match=f"questions.*{count}"):
        evaluate_skills(engine, count)
