"""What must not happen: text that becomes HTML, requests elsewhere, errors that leave people alone."""

import re
from collections.abc import Callable
from pathlib import Path

from chat_driver import ANSWER, Chat, Server
from fake_server import PAGE

PAYLOADS = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<svg/onload=window.hacked=1>",
    "[click](javascript:window.hacked=1)",
    "[click](JaVaScRiPt:window.hacked=1) <javascript:window.hacked=1>",
    "[click](data:text/html,<script>alert(1)</script>)",
    '[click](https://example.org/"onmouseover=window.hacked=1)',
    "![x](https://example.org/x.png)",
    '```"><img src=x onerror=window.hacked=1>\n</code></pre><script>window.hacked = 1</script>\n```',
    "`<img src=x onerror=window.hacked=1>`",
    "**<b onclick=window.hacked=1>x</b>** https://example.org/<script>window.hacked=1</script>",
    "| <img src=x onerror=window.hacked=1> |\n|---|\n| <iframe srcdoc='<script>parent.hacked=1</script>'> |",
    "</article></main><form action=https://example.org><button>Send</button></form>",
    "{{constructor.constructor('window.hacked = 1')()}} ${window.hacked = 1}",
]
FORBIDDEN = r"(inner|outer)HTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|ContextualFragment"
OURS = re.compile(
    "P|A|BR|B|I|CODE|PRE|DIV|SPAN|TABLE|THEAD|TBODY|TR|TH|TD|STRONG|EM|DEL|UL|OL|LI|H[2-6]|HR|BLOCKQUOTE|BUTTON|FOOTER|"
    "ARTICLE|TEXTAREA"
)


def test_text_is_never_html(chat: Chat) -> None:
    chat.page.click("#settings-button")
    chat.page.get_by_label("System prompt").fill(PAYLOADS[1])
    chat.page.keyboard.press("Escape")
    chat.ask(f"say {PAYLOADS[1]}")  # it is in the list of conversations and in the title too
    for payload in PAYLOADS:
        chat.ask(f"say {payload}")
    chat.press("Edit", 0)
    links = chat.each("#messages a", "[e.href, e.rel, e.target]")
    assert links and all(href.startswith("https://example.org/") for href, _, _ in links)
    assert all("noopener" in rel and target == "_blank" for _, rel, target in links)
    for view in ("prose", "tokens"):
        tags = set(chat.each("main *, nav *, [popover] *", "e.tagName"))
        assert [tag for tag in tags if not OURS.fullmatch(tag)] == []
        names = chat.page.eval_on_selector_all("main *", "all => all.flatMap((e) => e.getAttributeNames())")
        assert not [name for name in names if name.startswith("on") or name in ("src", "srcdoc", "action")]
        if view == "prose":
            chat.page.keyboard.press("Alt+T")
            chat.page.locator(".tokens .token").last.click()
    assert chat.page.evaluate("window.hacked") is None


def test_the_sources_make_no_html_of_strings() -> None:
    sources = "\n".join(file.read_text() for file in Path(PAGE).iterdir())
    assert not re.findall(FORBIDDEN, sources)
    html = (PAGE / "index.html").read_text()
    assert not re.findall(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", html)
    allowed = {"http://www.w3.org/2000/svg", "https?://"}
    assert set(re.findall(r"https?\??://[\w./]*", sources)) - allowed == set(), "something from elsewhere"


MARKDOWN = [
    ("a\nb\n\nc", "<p>a<br>b</p><p>c</p>"),
    ("**a** *b* __c__ _d_ ~~e~~", "<p><strong>a</strong> <em>b</em> <strong>c</strong> <em>d</em> <del>e</del></p>"),
    ("***a*** **b *c* d**", "<p><strong><em>a</em></strong> <strong>b <em>c</em> d</strong></p>"),
    ("2*3*4 and snake_case_name and 5 * 6 * 7", "<p>2*3*4 and snake_case_name and 5 * 6 * 7</p>"),
    ("`a*b*` ``c`d`` \\*e\\*", "<p><code>a*b*</code> <code>c`d</code> *e*</p>"),
    ("**open and `open", "<p>**open and `open</p>"),
    ("# A\n### B #\ntext", "<h3>A</h3><h5>B #</h5><p>text</p>"),
    ("- a\n- b\n  - c\n\n    more\n- d", "<ul><li>a</li><li>b<ul><li>c<p>more</p></li></ul></li><li>d</li></ul>"),
    ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    ("> a\n> - b", "<blockquote><p>a</p><ul><li>b</li></ul></blockquote>"),
    ("a\n\n---\n***", "<p>a</p><hr><hr>"),
    (
        "| a | b |\n|---|:-:|\n| 1 | 2 |\ntext",
        "<table><thead><tr><th>a</th><th>b</th></tr></thead>"
        "<tbody><tr><td>1</td><td>2</td></tr></tbody></table><p>text</p>",
    ),
    ("see https://example.org/a_b_(c). ok", "<p>see <a>https://example.org/a_b_(c</a>). ok</p>"),
    ('[1] and [a *b*](https://example.org/x_(y) "t")', "<p>[1] and <a>a <em>b</em></a></p>"),
    ("[a](ftp://x) [b](//x) [c](/x) [d](http:x)", "<p>[a](ftp://x) [b](//x) [c](/x) [d](http:x)</p>"),
    ("```py\na\n\n    b\n```\nc", "<pre><code>a\n\n    b</code></pre><p>c</p>"),
    ("~~~\nopen **a**", "<pre><code>open **a**</code></pre>"),
]


def test_markdown(chat: Chat) -> None:
    for source, expected in MARKDOWN:
        assert chat.page.evaluate("(text) => probes.markdown(text)", source) == expected, source


PIECES = ["*a ", "**a ", "***a ", "[", "[a](", "![](", "`", "` `` ", "_", "> ", "- ", "1. ", "- a\n", "|", "a | b\n"]
PIECES += ["http://", "\\", "#", "\n", "~~~ a\n"]
HARD = [
    *(piece * (100_000 // len(piece)) for piece in PIECES),
    " " * 100_000 + "- a",
    "https://a" + ")" * 100_000,
    "|" * 50_000 + "\n" + "|-" * 50_000 + "x",
    "* * * *" * 10_000 + "x",
    "***" * 30_000 + "a" + "***" * 30_000,
]


def test_markdown_takes_any_text_in_little_time(chat: Chat) -> None:
    for text in HARD:
        assert chat.page.evaluate("(text) => probes.markdownSeconds(text)", text) < 2, text[:10]


ERRORS = {
    400: "This is what you asked for.",
    413: "too long",
    429: "busy. Please try again in 3 s",
    500: "can’t answer now: This is what you asked for.",
    503: "can’t answer now",
}


def test_errors_are_said_kindly(chat: Chat) -> None:
    for status, words in ERRORS.items():
        chat.send(f"fail {status}")
        chat.page.wait_for_selector("article:last-child .error")
        assert words in chat.texts("article .error p")[-1]
    before = len(chat.requests())
    chat.press("Try again")
    chat.until(lambda: len(chat.requests()) == before + 1)
    chat.page.wait_for_selector("article:last-child .error")
    assert chat.ask("say fine") == "fine"
    # What failed is not said to the model.
    assert [message["content"] for message in chat.requests()[-1]["messages"]] == ["say fine"]


def test_an_error_in_the_stream(chat: Chat) -> None:
    chat.send("fail later")
    chat.page.wait_for_selector("article .error")
    assert chat.texts("article .error p") == ["The answer broke off: The engine failed."]


def test_the_server_dies_and_comes_back(open_chat: Callable[..., Chat], server: Server) -> None:
    chat = open_chat(server.url)
    chat.send("slowly say a b c d e f g h i j k l m n o p")
    chat.until_answer_has("c d")
    server.kill()
    chat.page.wait_for_selector("article .error")
    assert chat.texts("article .error p") == ["The connection broke off before the answer was complete."]
    assert "c d" in chat.texts(ANSWER)[-1]  # what came stays
    chat.press("Try again")
    chat.page.wait_for_selector("article .error")
    chat.until(lambda: "can’t be reached" in chat.texts("article .error p")[0])
    assert "c d" in chat.texts(ANSWER)[-1]
    server.start()
    chat.press("Try again")
    assert chat.settled() == "a b c d e f g h i j k l m n o p"
    assert chat.texts("article .error") == []


def test_the_page_waits_for_a_server_that_is_away(open_chat: Callable[..., Chat], server: Server) -> None:
    chat = open_chat(server.url)
    chat.ask("say kept")
    chat.page.route("**/v1/**", lambda route: route.abort())
    chat.page.reload()
    chat.page.wait_for_selector("#notice:visible")
    assert "can’t be reached" in chat.page.inner_text("#notice")
    assert chat.texts(ANSWER) == ["kept"]
    chat.page.unroute("**/v1/**")
    chat.press("Try again")
    chat.page.wait_for_selector("#notice", state="hidden")
    assert chat.ask("say hello") == "hello"


def test_the_api_key_is_asked_for(open_chat: Callable[..., Chat]) -> None:
    server = Server("secret")
    try:
        chat = open_chat(server.url)
        chat.page.get_by_role("textbox", name="API key").fill("wrong")
        chat.press("Use this key")
        chat.page.wait_for_selector("#key[open]")
        chat.page.get_by_role("textbox", name="API key").fill("secret")
        chat.press("Use this key")
        chat.until(lambda: chat.texts("#model") == ["demo"])
        assert chat.ask("say hello") == "hello"
        assert "secret" not in chat.page.evaluate("JSON.stringify(localStorage)")
    finally:
        server.kill()
