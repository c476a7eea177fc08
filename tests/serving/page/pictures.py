"""Takes the pictures of the chat page for the docs, from any server: best one with the model of the demo.

python tests/serving/page/pictures.py http://127.0.0.1:8000 docs/pictures
"""

import sys
from pathlib import Path
from typing import Any

from chat_driver import Chat
from playwright.sync_api import Browser, sync_playwright

from conftest import CHROMIUM, FLAGS

QUESTIONS = ["What is 37 times 24?", "What is the capital of the moon?"]
PHONE = {"viewport": {"width": 390, "height": 760}, "is_mobile": True, "has_touch": True}


def open_chat(browser: Browser, url: str, scheme: str, **options: Any) -> Chat:
    shape = {"viewport": {"width": 1080, "height": 640}, **options}
    context = browser.new_context(color_scheme=scheme, device_scale_factor=2, **shape)  # type: ignore[arg-type]
    chat = Chat(context.new_page(), url)
    for question in QUESTIONS:
        chat.page.fill("#text", question)
        chat.press("Send")
        chat.settled()
    return chat


def surprising(chat: Chat) -> Any:
    """The token of the last answer that the model was least sure of."""
    chances = chat.each("article:last-child .token", "e.title.endsWith('%') ? parseFloat(e.title) : 100")
    return chat.page.locator("article:last-child .token").nth(chances.index(min(chances)))


def main(url: str, folder: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)

        def take(chat: Chat, name: str) -> None:
            chat.page.wait_for_timeout(400)
            chat.page.screenshot(path=folder / f"page-{name}.png")

        for scheme in ("light", "dark"):
            chat = open_chat(browser, url, scheme)
            take(chat, scheme)
            chat.page.click("#token-view")
            surprising(chat).click()
            take(chat, f"tokens-{scheme}")
        chat.page.keyboard.press("Escape")
        chat.page.route("**/v1/**", lambda route: route.abort())
        chat.page.click("#new")
        chat.ask("Is anybody there?")
        take(chat, "error")
        chat = open_chat(browser, url, "light", **PHONE)
        chat.page.tap("#token-view")
        take(chat, "phone")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
