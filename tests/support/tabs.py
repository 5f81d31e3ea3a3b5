"""The playground in a browser's tab, and what tests want to know of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

SCREENSHOTS = Path(__file__).parent.parent.parent / "out" / "screenshots"
WATCH = """
window.pictures = [];
document.addEventListener("twinshot:picture", ({ detail }) => pictures.push(detail));
"""


class Playground:
    """A tab with the page. `errors` is what its console complained about, `asked` every address it loaded."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.errors: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("websocket", lambda socket: self.asked.append(socket.url))
        page.add_init_script(WATCH)

    def open(self, fragment: str = "", state: str | None = "ready") -> Playground:
        """Load the page, and wait for a state and, if that is ready, for the first picture."""
        self.page.goto(self.url + "/" + fragment)
        if state:
            self.wait_for_state(state)
        if state == "ready":
            self.until(lambda: self.pictures)
        return self

    def until(self, condition: Callable[[], Any], seconds: float = 30) -> None:
        """Wait until something is so, while the page goes on."""
        for _ in range(int(seconds * 50)):
            if condition():
                return
            self.page.wait_for_timeout(20)
        raise TimeoutError(f"it never came to be; the page says {self.page.inner_text('#state')!r}")

    def wait_for_state(self, state: str) -> None:
        self.page.wait_for_selector(f"body[data-state={state}]", timeout=60_000)

    def wait_for_picture(self, **facts: object) -> None:
        """Wait until the newest picture has these facts."""
        self.until(lambda: self.pictures and facts.items() <= self.pictures[-1].items())

    @property
    def pictures(self) -> list[dict[str, Any]]:
        """Every picture that was shown, as the page's event tells."""
        found: list[dict[str, Any]] = self.page.evaluate("pictures")
        return found

    def type(self, prompt: str, delay: float = 0) -> None:
        """Replace the prompt by typing; `delay` is milliseconds between keys."""
        self.page.focus("#prompt")
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(prompt, delay=delay)

    def pixels(self, tile: int = 0) -> str:
        """What a tile shows, as text that can be compared."""
        canvas = f"document.querySelectorAll('#stage canvas')[{tile}]"
        found: str = self.page.evaluate(f"{canvas}.toDataURL()")
        return found

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def screenshot(self, name: str) -> None:
        """Keep what it looks like, for people to look at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    def _hear(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.errors.append(text)
