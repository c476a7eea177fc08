"""The report page: whole, self-contained, escaped, and with the numbers it was given."""

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from nanochat.data.primer import SKILLS, Question
from nanochat.evaluation.report_card import ReportCard, StageCost
from nanochat.evaluation.skills import Answer, SkillReport

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>&amp; "quoted" \'single\' </p></main>'
METRICS = [
    {"stage": stage, "step": step, "loss": 5.0 - step / 10, "seconds": float(step)}
    | ({"val_bpb": 2.0 - step / 20} if step % 5 == 4 else {})
    for stage in ("base", "chat")
    for step in range(20)
]


def question_of(user, answer):
    return Question(
        skill="capitals", conversation=[{"role": "user", "content": user}], answer=answer, reference=answer,
        tool=None, match="word", rivals=(), accepted=(),
    )  # fmt: skip


def skill_report(text="Paris", score=1.0):
    question = question_of(f"What? {text}", f"right: {text}")
    names = list(SKILLS)[:3]
    answers = {name: [Answer(question, SimpleNamespace(text=f"said: {text}"), score)] for name in names}
    answers[names[0]] = [Answer(question, SimpleNamespace(text="ok"), 1.0)] * 3 + answers[names[0]]
    return SkillReport(answers)


def card(**values):
    defaults = {
        "title": "NanoChat, depth 4",
        "stages": {"base": StageCost(3_456_789, 2_000_000, 41_000_000_000_000, 234.0)},
        "metrics": METRICS,
        "skills": skill_report(score=0.0),
        "samples": [
            [
                {"role": "user", "content": "What is 6 times 7?"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "python", "text": "6 * 7"},
                        {"type": "python_output", "text": "42"},
                        {"type": "text", "text": "6 times 7 is 42."},
                    ],
                },
            ]
        ],
        "texts": [("Once upon a time", " there was a fox.")],
        "machine": "PyTorch, 2 threads",
    }
    return ReportCard(**(defaults | values))


VOID = {"meta", "br", "img", "link", "hr", "input", "path", "use", "rect"}
CLOSED_BY_OTHERS = {"tr", "td", "th", "p", "html"}


class Page(HTMLParser):
    """All elements and text of a page; fails where an element is closed that is not open."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self.open = [], "", []
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID | CLOSED_BY_OTHERS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID | CLOSED_BY_OTHERS:
            assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text += data


def test_it_parses_and_every_element_is_closed():
    page = Page(card().html())
    assert {"title", "style", "svg", "table", "main"} <= {tag for tag, _ in page.elements}


def test_the_numbers_given_are_on_it():
    text = Page(card().html()).text
    assert "3.5 M" in text and "2.00 M" in text and "4.10e+13" in text and "234 s" in text
    assert f"{2_000_000 / 234:,.0f}" in text  # tokens per second
    assert f"{41e12 / 234 / 1e9:,.0f}" in text  # GFLOP/s
    report = skill_report(score=0.0)
    assert f"{report.average:.3f}" in text
    for name, score in report.scores.items():
        assert name in text and f"{score:.2f}" in text
    for part in ("PyTorch, 2 threads", "What is 6 times 7?", "6 * 7", "6 times 7 is 42.", "there was a fox."):
        assert part in text


def test_how_the_writing_grew_is_shown_by_beginning():
    samples = [{"beginning": HOSTILE, "text": " a sample"}, {"beginning": "Once", "text": HOSTILE}]
    metrics = [record | {"samples": samples} if record["step"] % 2 else record for record in METRICS]
    page = Page(card(metrics=metrics).html())
    assert "How its writing grew" in page.text and not [tag for tag, _ in page.elements if tag == "script"]
    assert page.text.count("a sample") == 2 * 6 and page.text.count(HOSTILE) == 2 * (1 + 6)  # six steps of each stage
    assert "How its writing grew" not in Page(card().html()).text


def test_the_share_of_the_peak_is_shown_where_it_is_known():
    cost = {"base": StageCost(1, 1, 1, 1.0, 0.437)}
    assert "44 %" in Page(card(stages=cost).html()).text and "44 %" not in Page(card().html()).text


def test_both_stages_have_their_curves():
    html = card().html()
    assert "pretraining" in html and "chat tuning" in html
    assert html.count("<svg") == 1
    one = card(metrics=[record for record in METRICS if record["stage"] == "base"]).html()
    assert len(one) < len(html)


def test_nothing_is_loaded_from_elsewhere():
    html = card(title=HOSTILE, texts=[(HOSTILE, HOSTILE)]).html()
    for tag, attributes in Page(html).elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "img", "video", "audio"), tag
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"):
                assert value.startswith("#"), (tag, name, value)
            if "url(" in (value or ""):
                assert re.fullmatch(r".*url\(#[\w-]+\).*", value), (tag, name, value)
    for style in re.findall(r"<style.*?</style>", html, re.S):
        assert "@import" not in style and "url(" not in style


@pytest.mark.parametrize(
    "values",
    [
        {"title": HOSTILE},
        {"machine": HOSTILE},
        {"texts": [(HOSTILE, HOSTILE)]},
        {"samples": [[{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": HOSTILE}]]},
        {"samples": [[{"role": "assistant", "content": [{"type": "python", "text": HOSTILE}]}]]},
        {"samples": [[{"role": "user onmouseover=alert(1)", "content": "Hi"}]]},
        {"skills": skill_report(HOSTILE, score=0.0)},
    ],
    ids=["title", "machine", "texts", "conversation", "calculator", "role", "wrong answers"],
)
def test_hostile_text_is_only_text(values):
    page = Page(card(**values).html())
    assert not [tag for tag, _ in page.elements if tag in ("script", "img")]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    if "role" not in str(values) or HOSTILE in str(values):
        assert HOSTILE in page.text


def test_without_skills_samples_or_texts_their_headings_are_left_out():
    page = Page(card(skills=None, samples=[], texts=[]).html())
    for heading in ("Skills", "Conversations", "Wrong answers", "Text by the base model"):
        assert heading not in page.text
    assert "What it cost" in page.text and "Learning" in page.text


def test_all_right_says_so_and_many_wrong_are_sampled():
    assert "None." in Page(card(skills=skill_report(score=1.0)).html()).text
    question = question_of("Q", "A")
    many = [Answer(question, SimpleNamespace(text=f"wrong {number}."), 0.0) for number in range(100)]
    text = Page(card(skills=SkillReport({"capitals": many})).html()).text
    assert "12 of 100" in text and "wrong 0." in text and text.count("wrong ") == 12


def test_it_is_written_whole_and_as_utf_8(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    made = card(texts=[("Es war", " einmal – 狐狸 🦊")])
    made.write(path)
    assert path.read_text(encoding="utf-8") == made.html()
    assert "狐狸 🦊" in path.read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_the_same_card_gives_the_same_page():
    assert card().html() == card().html()


def test_a_run_without_validation_yet_has_a_page():
    Page(card(metrics=METRICS[:2]).html())
    Page(card(metrics=[]).html())
