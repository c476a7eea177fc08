"""The token view: how likely each token was, what else was possible, and answers that go on from there."""

from collections.abc import Callable

from chat_driver import Chat, Server

QUESTION = "What is the capital of France?"


def show_tokens(chat: Chat) -> list[str]:
    chat.page.click("#token-view")
    return chat.texts(".tokens .token")


def test_every_token_shows_its_probability(chat: Chat) -> None:
    chat.ask(QUESTION)
    assert show_tokens(chat) == ["The", "capital", "of", "France", "is", "Paris", ".", "<|assistant_end|>"]
    shades = chat.each(".tokens .token", "e.className")
    levels = [f"token level-{place % 5}" for place in range(8)]
    assert shades == [*levels[:7], f"{levels[7]} control"]
    names = chat.each(".tokens .token", "e.ariaLabel")
    assert names[:2] == ["The, 97.0 %", "␣capital, 62.0 %"]
    lines = chat.each(".tokens .token", "getComputedStyle(e).textDecorationStyle")
    assert lines[1:5] == ["dotted", "dashed", "solid", "double"]  # readable without colour
    assert chat.page.is_visible("#legend")
    chat.page.keyboard.press("Alt+T")
    assert chat.texts("article.assistant .body") == ["The capital of France is Paris."]
    assert not chat.page.is_visible("#legend")


def test_the_calculators_tokens_are_visible(chat: Chat) -> None:
    chat.ask("What is 37 times 24?")
    tokens = show_tokens(chat)
    assert tokens[:9] == [
        "<|python_start|>", "37", "*", "24", "<|python_end|>", "<|output_start|>", "888", "<|output_end|>", "37",
    ]  # fmt: skip
    given = chat.texts(".tokens .given")
    assert given == ["<|output_start|>", "888", "<|output_end|>"]
    chat.page.locator(".tokens .given").nth(1).click()
    assert "A tool’s result" in chat.page.inner_text("#alternatives")


def test_an_answer_goes_on_from_an_alternative(chat: Chat) -> None:
    chat.ask(QUESTION)
    show_tokens(chat)
    chat.page.locator(".tokens .token").nth(5).click()
    rows = [row.split("\n") for row in chat.texts("#alternatives li")]
    assert rows[0] == ["␣Paris", "✓ 97.0 %"] and rows[1] == ["␣Lyon", "1.50 %"] and rows[-1][0] == "all others"
    chat.press("␣Lyon, 1.50 %")
    chat.settled()
    written = chat.texts(".tokens .token")
    assert written == ["The", "capital", "of", "France", "is", "Lyon", *[",", "of", "course", "."], "<|assistant_end|>"]
    first, branch = chat.requests()[-2:]
    assert branch["messages"] == first["messages"] and len(branch["prefix_token_ids"]) == 6
    assert chat.texts(".picked") == ["your pick", "Lyon"]  # the legend's and the answer's
    shades = chat.each(".tokens .token", "e.className")
    assert shades[:6] == [*(f"token level-{place}" for place in range(5)), "token level-4 picked"]
    assert chat.texts("[role=group]") == ["2 / 2"]
    chat.press("Earlier version")
    assert chat.texts(".tokens .token")[5] == "Paris"
    chat.press("Later version")
    chat.page.reload()  # all of it is kept
    assert chat.texts(".tokens .token")[5] == "Lyon" and chat.texts(".tokens .picked") == ["Lyon"]
    chat.page.locator(".tokens .token").nth(5).click()
    assert chat.texts("#alternatives :disabled code") == ["␣Lyon"]
    assert "97.0 %" in chat.page.inner_text("#alternatives")


def test_an_answer_ends_where_its_end_is_picked(chat: Chat) -> None:
    chat.ask("What is 37 times 24?")
    show_tokens(chat)
    chat.page.locator(".tokens .token").nth(14).click()  # the end itself
    chat.page.get_by_role("button", name="␣Lyon").click()
    chat.settled()
    assert chat.texts(".tokens .token")[13:16] == [".", "Lyon", ","]


def test_tokens_by_keyboard(chat: Chat) -> None:
    chat.ask(QUESTION)
    show_tokens(chat)
    chat.page.locator(".tokens .token").first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "Home", "ArrowLeft", "ArrowRight"):
        chat.page.keyboard.press(key)
    assert chat.focused() == "␣capital, 62.0 %"
    chat.page.keyboard.press("Enter")
    assert chat.focused() == "␣Lyon, 19.0 %"
    chat.page.keyboard.press("Escape")
    assert not chat.page.is_visible("#alternatives")
    assert chat.focused() == "␣capital, 62.0 %"
    assert chat.page.locator(".tokens [tabindex='0']").count() == 1
    chat.page.keyboard.press(" ")
    chat.page.keyboard.press("Enter")
    chat.settled()
    assert chat.texts(".tokens .token")[:2] == ["The", "Lyon"]


def test_picking_while_the_answer_is_still_written(chat: Chat) -> None:
    chat.page.click("#token-view")
    chat.send("slowly say a b c d e f g h i j k l m n o p")
    chat.until(lambda: len(chat.texts(".tokens .token")) > 3)
    chat.page.locator(".tokens .token").nth(1).click()
    chat.page.get_by_role("button", name="␣Lyon").click()
    chat.settled()
    assert chat.texts(".tokens .token")[:3] == ["a", "Lyon", ","]
    chat.press("Earlier version")
    assert "Stopped." in chat.texts(".note")


def test_a_token_of_line_ends_and_unknown_bytes_can_be_seen(chat: Chat) -> None:
    chat.ask("say a\n\tb")
    assert show_tokens(chat) == ["a", "↵", "b", "<|assistant_end|>"]
    names = chat.each(".tokens .token", "e.ariaLabel.split(',')[0]")
    assert names == ["a", "↵", "⇥b", "<|assistant_end|>"]


def test_the_look_inside_is_linked_where_there_is_one(open_chat: Callable[..., Chat], shared_server: Server) -> None:
    chat = open_chat(shared_server.url)
    chat.page.wait_for_selector("#insight:visible")
    assert chat.page.get_attribute("#insight", "href") == f"{shared_server.url}/insight"
    chat.page.route("**/health", lambda route: route.fulfill(json={"status": "ok"}))
    chat.page.reload()
    chat.page.wait_for_timeout(100)
    assert not chat.page.is_visible("#insight")
    chat.page.route("**/health", lambda route: route.fulfill(json={"status": "ok", "insight": "javascript:alert(1)"}))
    chat.page.reload()
    chat.page.wait_for_timeout(100)
    assert not chat.page.is_visible("#insight")
