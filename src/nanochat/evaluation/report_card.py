"""The report card of a run: one self-contained HTML page with curves, skills, samples and what it cost."""

import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat.common import atomic_file
from nanochat.data.conversations import Conversation
from nanochat.evaluation.curves import learning_curves
from nanochat.evaluation.skills import SkillReport

STAGE_NAMES = {"base": "pretraining", "chat": "chat tuning"}


@dataclasses.dataclass(frozen=True)
class StageCost:
    """What one stage took: parameters trained, tokens seen, floating-point operations, seconds of training.

    `utilization` is the share of the machine's peak while it trained, where that is known.
    """

    parameters: int
    tokens: int
    flops: int
    seconds: float
    utilization: float | None = None


@dataclasses.dataclass(frozen=True)
class ReportCard:
    """Everything the page shows.

    `metrics` are the records of `metrics.jsonl`, `samples` conversations with the model's own answers, `texts` what
    the base model wrote after a given beginning, as (beginning, continuation).
    """

    title: str
    stages: dict[str, StageCost]
    metrics: list[dict[str, Any]]
    skills: SkillReport | None
    samples: Sequence[Conversation]
    texts: Sequence[tuple[str, str]]
    machine: str

    def write(self, path: Path) -> None:
        """Write the page, atomically."""
        with atomic_file(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")

    def html(self) -> str:
        """The page as HTML; what a model or a user wrote is always escaped."""
        sections = [
            f"<p class=dim>{html.escape(self.machine)}</p>",
            "<h2>What it cost</h2>",
            self._costs(),
            "<h2>Learning</h2>",
            learning_curves(self.metrics, STAGE_NAMES),
        ]
        growth = _growth(self.metrics)
        if growth:
            sections += ["<h2>How its writing grew</h2>", growth]
        if self.skills is not None:
            average = f"{self.skills.average:.3f}"
            sections += [
                f"<h2>Skills: {average} on average</h2>",
                "<p>Share of held-out questions answered right. What is held out differs by skill: hover.</p>",
                _skill_bars(self.skills),
            ]
        if self.samples:
            sections += ["<h2>Conversations</h2>", *(_conversation(sample) for sample in self.samples)]
        if self.skills is not None:
            sections += ["<h2>Wrong answers</h2>", _wrong_answers(self.skills)]
        if self.texts:
            sections += ["<h2>Text by the base model</h2>", *(_text(*text) for text in self.texts)]
        return page(self.title, sections)

    def _costs(self) -> str:
        rows = [
            f"<tr><td>{STAGE_NAMES[name]}<td>{cost.parameters / 1e6:.1f} M<td>{cost.tokens / 1e6:.2f} M"
            f"<td>{cost.flops:.2e}<td>{cost.seconds:.0f} s<td>{cost.tokens / max(cost.seconds, 1e-9):,.0f}"
            f"<td>{cost.flops / max(cost.seconds, 1e-9) / 1e9:,.0f}"
            f"<td>{'' if cost.utilization is None else f'{100 * cost.utilization:.0f} %'}"
            for name, cost in self.stages.items()
        ]
        head = "<tr><th>stage<th>parameters<th>tokens<th>FLOPs<th>time<th>tokens/s<th>GFLOP/s<th>of the peak"
        return f"<table>{head}{''.join(rows)}</table>"


def page(title: str, sections: Sequence[str]) -> str:
    """A whole self-contained HTML page of sections in HTML, under its title (plain text)."""
    body = "\n".join(sections)
    return (
        f"<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n<title>{html.escape(title)}</title>\n"
        '<meta name=viewport content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n<main>\n<h1>{html.escape(title)}</h1>\n{body}\n</main>\n</html>\n"
    )


def _growth(metrics: list[dict[str, Any]]) -> str:
    """The samples taken while training: for each beginning how it was continued after more and more steps."""
    parts = []
    for stage, title in STAGE_NAMES.items():
        records = [record for record in metrics if record["stage"] == stage and record.get("samples")]
        shown = [records[i] for i in sorted({round(i * (len(records) - 1) / 5) for i in range(6)})] if records else []
        for number, first in enumerate(shown[-1]["samples"] if shown else []):
            rows = [
                f"<tr><td class=dim>{record['step'] + 1:,}<td>{html.escape(record['samples'][number]['text'])}"
                for record in shown
                if number < len(record["samples"])
            ]
            head = f"<tr><th>step<th>{html.escape(first['beginning'])} …"
            parts.append(f"<table class=samples>{head}{''.join(rows)}</table>")
        if shown:
            parts.insert(len(parts) - len(shown[-1]["samples"]), f"<h3>{title}</h3>")
    return "\n".join(parts)


def _skill_bars(report: SkillReport) -> str:
    from nanochat.data.primer import SKILLS

    rows = [
        f'<div class=bar title="{html.escape(SKILLS[name].description)}"><span>{html.escape(name)}</span>'
        f"<i><b style=width:{100 * score:.0f}%></b></i><span>{score:.2f}</span></div>"
        for name, score in report.scores.items()
    ]
    return "\n".join(rows)


def _wrong_answers(report: SkillReport, most: int = 12) -> str:
    wrong = [answer for answers in report.answers.values() for answer in answers if answer.score < 1]
    if not wrong:
        return "<p>None.</p>"
    rows = [
        f"<tr><td>{html.escape(answer.question.skill)}<td>{html.escape(answer.question.conversation[-1]['content'])}"
        f"<td>{html.escape(answer.question.answer)}<td>{html.escape(answer.result.text)}"
        for answer in wrong[:: max(1, len(wrong) // most)][:most]
    ]
    head = "<tr><th>skill<th>question<th>expected<th>answer"
    return f"<p>{len(rows)} of {len(wrong)}:</p><table>{head}{''.join(rows)}</table>"


def _conversation(conversation: Conversation) -> str:
    lines = []
    for message in conversation:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            kind = message["role"] if part["type"] == "text" else part["type"]
            lines.append(f'<p class="{html.escape(kind)}">{html.escape(part["text"])}</p>')
    return f"<div class=chat>{''.join(lines)}</div>"


def _text(beginning: str, continuation: str) -> str:
    return f"<blockquote><b>{html.escape(beginning)}</b>{html.escape(continuation)}</blockquote>"


_STYLE = """
:root { color-scheme: light dark; --line: #8884; --accent: #3b6ea8; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; }
main { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td, th { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
figure { margin: 0; background: #fff; border-radius: 8px; } svg { width: 100%; height: auto; }
.figures :is(td, th) { padding: .3rem .4rem; } .figures :is(td, th):not(:first-child) { white-space: nowrap; }
.dim { opacity: .7; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.5rem; } .legend i { display: inline-block; width: 2rem;
  margin-right: .5rem; vertical-align: middle; }
h3 { margin: 1rem 0 .2rem; } .samples { margin: .6rem 0; } .samples td:first-child { width: 4rem; }
.bar { display: grid; grid-template-columns: 8rem 1fr 3rem; gap: .6rem; align-items: center; }
.bar i { background: var(--line); border-radius: 4px; height: .8rem; }
.bar b { display: block; background: var(--accent); border-radius: 4px; height: 100%; }
.chat { border: 1px solid var(--line); border-radius: 8px; padding: .4rem 1rem; margin: .6rem 0; }
.chat p { display: grid; grid-template-columns: 6.5rem 1fr; margin: .3rem 0; white-space: pre-wrap; }
.chat p::before { opacity: .6; font-size: .85rem; }
.user::before { content: "you"; } .assistant::before { content: "model"; } .system::before { content: "system"; }
.python::before { content: "calculator"; } .python_output::before { content: "result"; }
.python, .python_output { font-family: ui-monospace, monospace; opacity: .8; }
blockquote { margin: .6rem 0; padding: .2rem 1rem; border-left: 3px solid var(--line); white-space: pre-wrap; }
"""
