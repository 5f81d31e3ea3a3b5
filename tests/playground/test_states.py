"""What the page says while the server warms up, is busy, drains, is gone, comes back or asks for a key."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
from tabs import Playground

from soak.servers import PROGRAM, STUB, Server, eventually

Make = Callable[..., Playground]
MakeStub = Callable[..., Any]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@contextmanager
def starting(**settings: str) -> Iterator[str]:
    """A server that listens, but has no model yet; yields its address."""
    port = str(free_port())
    command = [PROGRAM, "serve", "--port", port, "--drain-seconds", "0", *STUB]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TWINSHOT_")}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean | settings
    ) as process:
        try:
            eventually(lambda: listens(f"http://127.0.0.1:{port}"))
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def listens(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/livez").is_success
    except httpx2.TransportError:
        return False


def test_superseded_frames_are_dropped(make_stub: MakeStub, make_playground: Make) -> None:
    prompt = "the newest of many"
    with make_stub(TWINSHOT_STUB_MS=300) as server:
        page = make_playground(server).open()
        page.type(prompt, delay=20)
        page.wait_for_picture(prompt=prompt)
        drawn = [picture["prompt"] for picture in page.pictures[1:]]
        assert server.metric("twinshot_realtime_dropped_total") >= len(prompt) - len(drawn) - 1 > 5
        assert len(drawn) < 6
        assert [picture["stale"] for picture in page.pictures][-2:] == [True, False]
        page.page.wait_for_timeout(400)
        assert page.pictures[-1]["prompt"] == prompt
        assert page.errors == []


def test_it_reconnects_after_the_server_restarts(make_stub: MakeStub, make_playground: Make) -> None:
    port = str(free_port())
    with make_stub("--port", port) as server:
        page = make_playground(server).open()
        before = page.pixels()
        server.stop()
        page.wait_for_state("reconnecting")
        assert page.text("#state") == "Connection lost, trying again …"
        assert page.pixels() == before, "the picture stays"
        page.type("typed while nobody listened")
        count = len(page.pictures)
    with make_stub("--port", port):
        page.wait_for_state("ready")
        page.wait_for_picture(prompt="typed while nobody listened")
        assert len(page.pictures) == count + 1, "only the newest wish was kept"
        page.page.click("#following")
        page.wait_for_picture(seed=8)


def test_it_waits_for_the_model(make_playground: Make) -> None:
    with starting(TWINSHOT_STUB_LOAD_MS="4000") as url:
        page = make_playground(url).open(state="warming")
        assert page.text("#state").startswith("The model is warming up")
        page.type("typed while it loads")
        page.screenshot("warming")
        page.wait_for_state("ready")
        page.wait_for_picture(prompt="typed while it loads")
        assert len(page.pictures) == 1
        assert page.errors == []


def test_it_says_that_the_server_is_busy_and_tries_again(make_stub: MakeStub, make_playground: Make) -> None:
    with make_stub("--max-queue", "1", TWINSHOT_STUB_MS=1500) as server, ThreadPoolExecutor(4) as others:
        page = make_playground(server).open()
        work = [others.submit(server.post, seed=seed) for seed in range(4)]
        page.until(lambda: not is_idle(server) and sum(task.done() for task in work) > 0)  # some were refused
        page.type("z")
        page.wait_for_state("busy")
        assert "Busy" in page.text("#state")
        page.screenshot("busy")
        page.wait_for_picture(prompt="z")
        page.wait_for_state("ready")


def test_it_says_that_the_server_drains_and_draws_on(make_stub: MakeStub, make_playground: Make) -> None:
    with make_stub("--drain-seconds", "8") as server:
        page = make_playground(server).open()
        server.process.send_signal(signal.SIGTERM)
        page.wait_for_state("draining")
        assert page.text("#state") == "This server is about to stop"
        page.page.click("#following")
        page.wait_for_picture(seed=8)
        page.wait_for_state("reconnecting")


def test_an_engine_that_dies_is_waited_for(make_stub: MakeStub, make_playground: Make) -> None:
    with make_stub() as server:
        page = make_playground(server).open()
        page.page.fill("#prompt", "!crash now")
        page.until(lambda: page.text("#problem") or page.text("#state") != "Ready")
        page.page.fill("#prompt", "life goes on")
        page.wait_for_picture(prompt="life goes on")
        page.wait_for_state("ready")


def test_a_key_is_asked_for_once(make_stub: MakeStub, make_playground: Make) -> None:
    with make_stub(TWINSHOT_API_KEYS="ann=a-secret-key") as server:
        page = make_playground(server).open(state="key")
        assert page.page.evaluate("document.activeElement.id") == "key"
        page.screenshot("key")
        page.page.keyboard.type("a-wrong-key")
        page.page.keyboard.press("Enter")
        page.until(lambda: page.text("#refused") == "The server does not know this key.")
        page.page.fill("#key", "a-secret-key")
        page.page.keyboard.press("Enter")
        page.wait_for_state("ready")
        page.until(lambda: page.pictures)
        assert page.page.is_hidden("#access")
        with page.page.expect_download() as download:
            page.page.click("#download")
        assert download.value.path().read_bytes().startswith(b"\x89PNG")
        assert "$TWINSHOT_API_KEY" in page.text("#snippet")
        assert "secret" not in page.page.url + page.text("body") + "".join(page.asked)
        page.page.reload()
        page.wait_for_state("ready")
        assert {error for error in page.errors if "401" not in error} == set()


def is_idle(server: Server) -> bool:
    health = httpx2.get(f"{server.url}/health").json()
    return bool(health["waiting"] == health["running"] == 0)
