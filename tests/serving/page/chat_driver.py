"""The two sides of a test of the chat page: the page as a person uses it, and the server it talks to."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SECONDS = 10.0  # to wait for anything
ANSWER = "article.assistant .body"


class Server:
    """fake_server.py in a process of its own, which can be killed and started again at the same address."""

    def __init__(self, *key: str) -> None:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.key = key
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, str(HERE / "fake_server.py"), str(self.port), *self.key])
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise AssertionError("the fake server did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Chat:
    """The page as a person uses it.

    Attributes:
        trouble: What must not happen on any page: uncaught errors, violations of the content security policy,
            requests to elsewhere.
    """

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self.url = url
        self.trouble: list[str] = []
        page.add_init_script(path=HERE / "probes.js")
        page.on("console", lambda message: self._note(message.text))
        page.on("pageerror", lambda error: self.trouble.append(f"uncaught: {error}"))
        page.context.on("request", lambda request: self._check(request.url))
        page.goto(url)

    def _note(self, text: str) -> None:
        if any(word in text for word in ("CSP", "Content Security Policy", "TypeError")):
            self.trouble.append(text)

    def _check(self, url: str) -> None:
        if not url.startswith((f"{self.url}/", "data:", "blob:")):
            self.trouble.append(f"a request to {url}")

    def send(self, text: str) -> None:
        self.page.fill("#text", text)
        self.page.keyboard.press("Enter")

    def ask(self, text: str) -> str:
        """Ask and return the whole answer."""
        self.send(text)
        return self.settled()

    def settled(self) -> str:
        """Wait until nothing is being written and return the last answer's text."""
        self.page.wait_for_selector("#send[aria-label=Send]")
        return self.texts(ANSWER)[-1]

    def until_answer_has(self, text: str) -> None:
        """Wait until the last answer, while it comes, has some text."""
        self.until(lambda: text in self.texts(ANSWER)[-1])

    def until(self, is_true: Callable[[], bool]) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + SECONDS
        while not is_true():
            assert time.monotonic() < deadline, "it did not happen in time"
            self.page.wait_for_timeout(20)

    def texts(self, selector: str) -> list[str]:
        """The visible texts of all elements that a selector finds."""
        return [text.strip() for text in self.page.locator(selector).all_inner_texts()]

    def each(self, selector: str, expression: str) -> list[Any]:
        """What a JavaScript expression says of each of these elements, called `e`."""
        return self.page.eval_on_selector_all(selector, f"all => all.map((e) => {expression})")

    def press(self, label: str, nth: int = -1) -> None:
        """Click the button with this label: the last one, or the nth."""
        self.page.get_by_role("button", name=label, exact=True).nth(nth).click()

    def focused(self) -> str:
        """The name of what has the focus."""
        return self.page.evaluate("(e => e.ariaLabel || e.innerText || e.id)(document.activeElement)")

    def requests(self) -> list[dict[str, Any]]:
        """What the server was asked, from the start of the test session."""
        return [request for request in self._log() if "messages" in request]

    def disconnections(self) -> int:
        """How often the server has seen a client leave."""
        return sum("disconnected" in entry for entry in self._log())

    def _log(self) -> list[dict[str, Any]]:
        return self.page.request.get(f"{self.url}/requests").json()
