"""The page in a real browser, served by real processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright
from tabs import Playground

from soak.servers import STUB, Server, running

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; Playwright brings a driver, but no browser of its own."""
    if not Path(CHROMIUM).exists():
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the built-in checkpoint."""
    with running(tmp_path_factory.mktemp("miniature")) as server:
        yield server


@pytest.fixture
def make_stub(tmp_path: Path) -> Callable[..., Any]:
    """Start a server with the stub engine, in a `with`: options, and settings of the stub by keyword."""

    def make(*options: str, **environment: object) -> Any:
        settings = {"TWINSHOT_STUB_SIZES": "256x256,128x128", **environment}
        named = {name: str(value) for name, value in settings.items()}
        return running(tmp_path, *STUB, *options, **named)

    return make


@pytest.fixture
def make_playground(browser: Browser) -> Iterator[Callable[..., Playground]]:
    """Open tabs; options are those of a browser context."""
    contexts = []

    def make(server: Server | str, **options: Any) -> Playground:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        contexts.append(context)
        return Playground(context.new_page(), server if isinstance(server, str) else server.url)

    yield make
    for context in contexts:
        context.close()
