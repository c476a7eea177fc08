"""Chatting: what people expect of any chat page."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_driver import ANSWER, Chat, Server

from nanochat.data.conversations import check_conversation

TEXT = "say one two three"


def test_an_answer_comes_and_is_announced(chat: Chat) -> None:
    chat.until(lambda: chat.texts("#model") == ["demo"])
    assert chat.ask("What is the capital of France?") == "The capital of France is Paris."
    assert chat.page.inner_text("#status") == "The capital of France is Paris."
    assert "8 tokens" in chat.texts(".speed")[0] and "32 of 40 from cache" in chat.texts(".speed")[0]
    assert chat.page.title() == "What is the capital of France? · NanoChat"
    sent = chat.requests()[-1]
    assert sent["messages"] == [{"role": "user", "content": "What is the capital of France?"}]
    assert (sent["temperature"], sent["max_tokens"], sent["stream"], sent["model"]) == (0, 256, True, "demo")


def test_an_answer_streams_and_stops(chat: Chat) -> None:
    chat.send("slowly say " + "word " * 100)
    chat.until_answer_has("word word")
    assert chat.page.get_attribute("article.assistant", "aria-busy") == "true"
    before = chat.disconnections()
    chat.page.keyboard.press("Escape")
    stopped = chat.settled()
    assert 2 <= stopped.count("word") < 50
    assert chat.texts(".note") == ["Stopped."]
    chat.until(lambda: chat.disconnections() > before)
    chat.send("slowly say " + "word " * 100)
    chat.until_answer_has("word word")
    chat.press("Stop")
    chat.settled()
    assert chat.texts(".note") == ["Stopped."] * 2


def test_what_is_being_read_stays_while_the_answer_grows(chat: Chat) -> None:
    chat.page.set_viewport_size({"width": 500, "height": 500})
    chat.ask("say " + "long " * 200)
    chat.send("slowly say first\n\nsecond\n\nthird\n\nfourth\n\nfifth\n\nsixth")
    chat.until_answer_has("second")
    chat.page.evaluate("getSelection().selectAllChildren(document.querySelector('article:last-child p'))")
    chat.page.hover("main")
    chat.page.mouse.wheel(0, -400)
    rest = "(e => e.scrollHeight - e.scrollTop - e.clientHeight)(document.querySelector('main'))"
    chat.until(lambda: chat.page.evaluate(rest) > 100)
    place = chat.page.evaluate("document.querySelector('main').scrollTop")
    chat.settled()
    assert chat.page.evaluate("getSelection().toString()").strip() == "first"
    assert chat.page.evaluate("document.querySelector('main').scrollTop") == place
    chat.ask("say bottom")
    assert chat.page.evaluate(rest) < 2


def test_a_stopped_answer_goes_on_where_it_was(chat: Chat) -> None:
    chat.send("slowly say a b c d e f g h")
    chat.until_answer_has("c d")
    chat.press("Stop")
    chat.settled()
    chat.press("Continue")
    assert chat.settled() == "a b c d e f g h"
    assert len(chat.requests()[-1]["prefix_token_ids"]) >= 4
    assert chat.texts(".note") == [] and chat.texts("article.assistant [role=group]") == []


def test_answering_again_keeps_the_versions(chat: Chat) -> None:
    chat.ask(TEXT)
    chat.press("Answer again")
    chat.settled()
    assert chat.texts("[role=group]") == ["2 / 2"]
    assert "temperature 0" in chat.texts(".note")[0]
    chat.press("Earlier version")
    assert chat.texts("[role=group]") == ["1 / 2"] and chat.texts(".note") == []
    assert chat.focused() == "Earlier version"


def test_a_message_is_edited_and_sent_again(chat: Chat) -> None:
    chat.ask("say first")
    chat.ask("say second")
    chat.press("Edit", 0)
    chat.page.keyboard.press("Escape")
    assert chat.texts("article.user .body")[0] == "say first"
    chat.press("Edit", 0)
    chat.page.keyboard.press("Control+A")
    chat.page.keyboard.type("say other")
    chat.page.keyboard.press("Enter")
    assert chat.settled() == "other"
    assert chat.texts(ANSWER) == ["other"]
    assert chat.requests()[-1]["messages"] == [{"role": "user", "content": "say other"}]
    chat.press("Earlier version")
    assert chat.texts(ANSWER) == ["first", "second"]


def test_a_long_message_has_lines(chat: Chat) -> None:
    chat.page.fill("#text", "say one")
    height = chat.page.locator("#text").bounding_box()["height"]
    chat.page.keyboard.press("Shift+Enter")
    chat.page.keyboard.type("two")
    assert chat.page.locator("#text").bounding_box()["height"] > height
    chat.page.keyboard.press("Enter")
    chat.settled()
    assert chat.requests()[-1]["messages"][0]["content"] == "say one\ntwo"


def test_the_calculators_work_goes_back_as_parts(chat: Chat) -> None:
    assert chat.ask("What is 37 times 24?").endswith("37 times 24 is 888.")
    assert chat.texts(".call code") == ["37*24 = 888"]
    chat.ask("say thanks")
    said = chat.requests()[-1]["messages"][1]["content"]
    assert said == [
        {"type": "python", "text": "37*24"},
        {"type": "python_output", "text": "888"},
        {"type": "text", "text": "37 times 24 is 888."},
    ]


def test_conversations_survive_a_reload(chat: Chat) -> None:
    chat.ask("say first")
    chat.page.keyboard.press("Alt+N")
    assert chat.texts("article") == []
    chat.ask("say second")
    chat.page.reload()
    assert chat.texts(ANSWER) == ["second"]
    assert chat.texts("#conversations a") == ["say second", "say first"]
    chat.page.click("#conversations a >> text=say first")
    assert chat.texts(ANSWER) == ["first"]
    assert chat.ask("say third") == "third"
    chat.page.once("dialog", lambda dialog: dialog.accept())
    chat.press("Delete “say second”")
    chat.page.reload()
    assert chat.texts("#conversations a") == ["say first"]
    assert chat.texts(ANSWER) == ["first", "third"]


def test_two_conversations_are_answered_at_the_same_time(chat: Chat) -> None:
    chat.send("slowly say a b c d e f g h")
    chat.until_answer_has("a b")
    chat.page.click("#new")
    assert chat.ask("say quick") == "quick"
    chat.page.click("#conversations a >> text=slowly")
    assert chat.settled() == "a b c d e f g h"


def test_an_answer_under_way_is_kept_when_the_page_closes(chat: Chat) -> None:
    chat.send("slowly say " + "word " * 100)
    chat.until_answer_has("word word")
    chat.page.reload()
    assert "word word" in chat.texts(ANSWER)[-1]
    assert chat.texts(".note")[0] in ("This answer was interrupted.", "Stopped.")


def test_damaged_storage_does_no_harm(chat: Chat) -> None:
    chat.ask("say kept")
    chat.page.evaluate("probes.damageStorage()")
    chat.page.reload()
    assert chat.texts("#conversations a") == ["say kept"]
    assert chat.texts(ANSWER) == ["kept"]
    assert chat.page.evaluate("Object.keys(localStorage).length") == 2
    chat.ask("say more")
    assert (chat.requests()[-1]["temperature"], chat.requests()[-1]["max_tokens"]) == (0, 99)


def test_full_storage_makes_room(chat: Chat) -> None:
    chat.page.evaluate("probes.fillStorage()")
    chat.page.reload()
    assert len(chat.texts("#conversations a")) == 30
    chat.ask("say new")
    titles = chat.texts("#conversations a")
    assert titles[:2] == ["say new", "number 1"] and 20 < len(titles) < 30
    chat.page.reload()
    assert chat.texts("#conversations a") == titles and chat.texts(ANSWER) == ["new"]


def test_without_storage_the_page_works_until_it_is_closed(
    open_chat: Callable[..., Chat], shared_server: Server
) -> None:
    chat = open_chat(shared_server.url)
    chat.page.add_init_script(
        "for (const name of ['localStorage', 'sessionStorage'])"
        " Object.defineProperty(window, name, {get() { throw new DOMException('denied', 'SecurityError'); }})"
    )
    chat.page.reload()
    assert chat.ask("say hello") == "hello"


def test_the_settings_count(chat: Chat) -> None:
    chat.page.click("#settings-button")
    chat.page.get_by_label("System prompt").fill("Be brief.")
    chat.page.get_by_label("Temperature").fill("0.7")
    chat.page.get_by_label("Top-p").fill("0.9")
    chat.page.get_by_label("Top-k").fill("40")
    chat.page.get_by_label("Most tokens").fill("12")
    chat.page.get_by_label("Seed").fill("5")
    chat.page.keyboard.press("Escape")
    chat.ask(TEXT)
    sent = chat.requests()[-1]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert [sent[name] for name in ("temperature", "top_p", "top_k", "max_tokens", "seed")] == [0.7, 0.9, 40, 12, 5]
    chat.press("Answer again")
    chat.settled()
    assert chat.requests()[-1]["seed"] == 6  # as /retry in the terminal
    chat.page.reload()
    chat.page.click("#settings-button")
    chat.page.get_by_label("Top-k").fill("")
    chat.page.get_by_label("Most tokens").fill("-1")  # not taken
    chat.page.get_by_role("button", name="Close", exact=True).click()
    chat.ask(TEXT)
    sent = chat.requests()[-1]
    assert "top_k" not in sent and sent["max_tokens"] == 12


def test_a_full_context_forgets_the_oldest(chat: Chat) -> None:
    for number in range(2):
        chat.ask(f"say {number} " + "x" * 400)
    chat.ask("say last " + "x" * 400)
    assert ["forgotten the oldest part" in note for note in chat.texts(".note")] == [True]
    messages = chat.requests()[-1]["messages"]
    assert messages[0]["role"] == "user" and messages[-1]["content"].startswith("say last") and len(messages) == 3


def test_export(chat: Chat, tmp_path: Path) -> None:
    chat.ask("What is 37 times 24?")
    files = {}
    for kind in ("Markdown", "JSON"):
        chat.page.click("#export")
        with chat.page.expect_download() as download:
            chat.press(kind)
        download.value.save_as(tmp_path / kind)
        files[kind] = (tmp_path / kind).read_text()
        assert download.value.suggested_filename.startswith("What-is-37-times-24-")
    said = "**You**\n\nWhat is 37 times 24?\n\n**NanoChat**\n\n`37*24 = 888`\n\n37 times 24 is 888.\n"
    assert files["Markdown"].endswith(said)
    exported = json.loads(files["JSON"])
    check_conversation(exported["messages"], "the export")
    assert exported["model"] == "demo" and len(exported["answers"][0]["tokens"]) == 15


def test_copy(open_chat: Callable[..., Chat], shared_server: Server) -> None:
    chat = open_chat(shared_server.url, permissions=["clipboard-read", "clipboard-write"])
    chat.ask("say **bold** and\n```py\nx = 1\n```")
    chat.press("Copy")
    chat.until(lambda: chat.page.evaluate("navigator.clipboard.readText()") == "**bold** and\n```py\nx = 1\n```")
    chat.press("Copy code")
    chat.until(lambda: chat.page.evaluate("navigator.clipboard.readText()") == "x = 1")
    assert chat.page.inner_text("#status") == "Copied."


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_until_it_is_set(
    open_chat: Callable[..., Chat], shared_server: Server, scheme: str
) -> None:
    chat = open_chat(shared_server.url, color_scheme=scheme)
    ground = "getComputedStyle(document.body).backgroundColor"
    colours = {"light": "rgb(252, 251, 249)", "dark": "rgb(26, 26, 25)"}
    assert chat.page.evaluate(ground) == colours[scheme]
    for theme in ("light", "dark"):
        chat.page.click("#theme")
        assert chat.page.evaluate(ground) == colours[theme]
        chat.page.reload()
        assert chat.page.evaluate(ground) == colours[theme]
    chat.page.click("#theme")
    assert chat.page.evaluate(ground) == colours[scheme]


def test_on_a_phone_nothing_is_wider_than_the_screen(open_chat: Callable[..., Chat], shared_server: Server) -> None:
    chat = open_chat(shared_server.url, viewport={"width": 320, "height": 640}, has_touch=True, is_mobile=True)
    table = f"{'| a ' * 40}|\n{'|---' * 40}|\n{'| cell ' * 40}|"
    chat.page.fill("#text", f"say a {'very' * 60}\n\n{table}\n\n```\n{'e' * 99}\n```")
    chat.page.keyboard.press("Enter")  # on a phone a new line
    chat.press("Send")
    chat.settled()
    for part in ("chat", "tokens", "settings"):
        if part == "tokens":
            chat.page.tap("#token-view")
            chat.page.locator(".token").nth(1).tap()
        if part == "settings":
            chat.page.keyboard.press("Escape")
            chat.page.tap("#settings-button")
        assert chat.page.evaluate("probes.rightEdge()") <= 320.5, part
        assert not chat.page.evaluate("probes.scrollsSideways()"), part
    chat.page.keyboard.press("Escape")
    assert not chat.page.is_visible("#new")
    chat.page.tap("#menu")
    chat.page.tap("#new")
    chat.page.wait_for_selector("#new", state="hidden")
    assert chat.texts("article") == []
    chat.page.tap("#menu")
    chat.page.tap("#new")  # where one is open already
    chat.page.wait_for_selector("#new", state="hidden")


def test_everything_is_reached_by_keyboard_and_named(chat: Chat) -> None:
    chat.ask(TEXT)
    assert chat.focused() == "Message"
    names = []
    for _ in range(30):
        chat.page.keyboard.press("Tab")
        names.append(chat.focused())
    bars = ["Theme: as the system", "New chat", TEXT, "Look inside", "Tokens", "Export", "Settings"]
    assert [name for name in [*bars, "Copy", "Edit", "Answer again", "Send"] if name not in names] == []
    assert chat.page.evaluate("probes.unnamed()") == []
    chat.page.evaluate("document.activeElement.blur()")
    chat.page.keyboard.press("/")
    assert chat.focused() == "Message"
    chat.page.keyboard.press("ArrowUp")
    assert chat.focused() == "Edit the message"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_contrast_is_that_of_wcag_aa(open_chat: Callable[..., Chat], shared_server: Server, scheme: str) -> None:
    chat = open_chat(shared_server.url, color_scheme=scheme)
    chat.ask("say ## A *b* `c` [d](https://example.org)\n> e")
    chat.ask("fail 500")
    chat.page.click("#token-view")
    chat.page.locator(".token").nth(4).click()
    assert chat.page.evaluate("probes.poorContrast()") == []
