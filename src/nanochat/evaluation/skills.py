"""The skills of the Primer: held-out questions, answered by the engine, scored by the Primer's own scorers."""

import dataclasses
from collections.abc import Callable
from typing import cast

from nanochat.common import UserError
from nanochat.data.conversations import Conversation
from nanochat.data.primer import SKILLS, Question
from nanochat.inference.engine import Engine, Result
from nanochat.inference.sampling import SamplingParams

MAX_NEW_TOKENS = 96  # the longest reference reply takes about half


@dataclasses.dataclass(frozen=True)
class Answer:
    """A question with the model's reply; `score` is 1.0 for right, 0.0 for wrong."""

    question: Question
    result: Result
    score: float


@dataclasses.dataclass(frozen=True)
class SkillReport:
    """All answers, by skill, in the order of the Primer."""

    answers: dict[str, list[Answer]]

    @property
    def scores(self) -> dict[str, float]:
        """Share of right answers per skill."""
        return {name: sum(a.score for a in answers) / len(answers) for name, answers in self.answers.items()}

    @property
    def average(self) -> float:
        """Mean over the skills, each counting the same."""
        return sum(self.scores.values()) / len(self.scores)


def evaluate_skills(
    engine: Engine,
    questions_per_skill: int = 50,
    seed: int = 1,  # the questions of seed 0 were looked at while the Primer was written
    split: str = "val",
    progress: Callable[[str, float], None] = lambda name, score: None,
) -> SkillReport:
    """Ask greedily `questions_per_skill` questions of every skill; `progress` hears each skill's score.

    Raises:
        UserError: for less than one question.
    """
    if questions_per_skill < 1:
        raise UserError(f"the number of questions of each skill must be at least 1, got {questions_per_skill}")
    params = SamplingParams(max_new_tokens=MAX_NEW_TOKENS)
    report: dict[str, list[Answer]] = {}
    for name, skill in SKILLS.items():
        questions = skill.questions(split, questions_per_skill, seed)
        prompts = [engine.encode(cast(Conversation, question.conversation)) for question in questions]
        fits = [len(prompt) < engine.context_length for prompt in prompts]
        replies = iter(engine.generate([prompt for prompt, fit in zip(prompts, fits, strict=True) if fit], params))
        # A question that the model's context can't hold goes unanswered.
        results = [next(replies) if fit else Result([], "", [], "length", [], 0, 0) for fit in fits]
        report[name] = [
            Answer(question, result, skill.score(question, result.text))
            for question, result in zip(questions, results, strict=True)
        ]
        progress(name, sum(answer.score for answer in report[name]) / len(report[name]))
    return SkillReport(report)
