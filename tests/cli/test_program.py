"""The program as users start it: real processes, real sockets, the built-in checkpoint."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from twinshot import APIStatusError, Client

Run = Callable[..., "subprocess.CompletedProcess[str]"]
PROMPT = "a red car left of a tree on a beach"
SLOW = 32  # steps that keep a request running long enough to be caught at it


def raw_request(**fields: int) -> bytes:
    """A POST of the prompt as it goes over the wire, for tests that hang up."""
    body = json.dumps({"prompt": PROMPT, **fields})
    head = [
        "POST /generate HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*head, "", body]).encode()


@contextmanager
def started(program: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A server process on a free port, which does not outlive the test even if that fails."""
    command = [program, "serve", "--port", "0", "--drain-seconds", "0", "--steps", f"1,2,{SLOW}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server on a port of its own; yields its address and its log."""
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as errors, started(program, stderr=errors) as process:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("twinshot is ready: open http://127.0.0.1:"), log.read_text()
        yield line.split()[-1], log
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert "Traceback" not in log.read_text()


def test_a_picture_over_http(server: tuple[str, Path], tmp_path: Path) -> None:
    with Client(server[0]) as client:
        picture = client.generate(PROMPT, seed=7)
        assert picture.image.size == (256, 256)
        assert picture.timings.denoise > 0
        assert client.generate(PROMPT, seed=7).bytes == picture.bytes
        assert client.generate(PROMPT, seed=8).bytes != picture.bytes


def test_the_same_seed_is_the_same_bytes_whatever_else_is_drawn(server: tuple[str, Path]) -> None:
    asked = [(prompt, seed, steps) for prompt in (PROMPT, "a dog") for seed in (7, 8) for steps in (1, 2)]
    with Client(server[0]) as client:

        def draw(request: tuple[str, int, int]) -> bytes:
            prompt, seed, steps = request
            return client.generate(prompt, seed=seed, steps=steps).bytes

        alone = [draw(request) for request in asked]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(draw, asked)) == alone
    assert len(set(alone)) == len(alone)


def test_the_command_line_and_the_server_draw_the_same(
    server: tuple[str, Path], run: Run, tmp_path: Path
) -> None:
    result = run("generate", PROMPT, "-o", "out.png", "--seed", "7", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["seed"] == 7
    with Client(server[0]) as client:
        assert Image.open(tmp_path / "out.png").tobytes() == client.generate(PROMPT, seed=7).image.tobytes()


def test_the_front_does_without_torch(program: str) -> None:
    with started(program, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        assert process.stdout.readline()
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()


def test_refusals_over_http(server: tuple[str, Path]) -> None:
    with Client(server[0]) as client:
        with pytest.raises(APIStatusError, match="100x100") as caught:
            client.generate(PROMPT, width=100, height=100)
        assert caught.value.status == 422
        with pytest.raises(APIStatusError, match="steps"):
            client.generate(PROMPT, steps=1000)
        with pytest.raises(APIStatusError, match="token"):
            client.generate("word " * 700)


def test_a_hung_up_client_does_no_harm(server: tuple[str, Path]) -> None:
    url = httpx2.URL(server[0])
    for _ in range(5):
        with socket.create_connection((url.host, url.port or 80)) as connection:
            connection.sendall(raw_request())
    with Client(server[0]) as client:
        assert client.generate(PROMPT).image.size == (256, 256)
    deadline = time.monotonic() + 10
    while 'outcome="cancelled"' not in httpx2.get(f"{server[0]}/metrics").text:
        assert time.monotonic() < deadline, "no request was counted as cancelled"
        time.sleep(0.05)


def test_prompts_stay_out_of_the_log(server: tuple[str, Path]) -> None:
    with Client(server[0]) as client:
        request_id = client.generate("a green pear in the snow").request_id
    lines = [json.loads(line) for line in server[1].read_text().splitlines()]
    assert request_id in {line.get("request_id") for line in lines}
    assert "pear" not in server[1].read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("wait_for_model", [True, False])
def test_a_signal_ends_the_server_cleanly(number: signal.Signals, wait_for_model: bool, program: str) -> None:
    with started(program, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert '"listening"' in process.stderr.readline()
        if wait_for_model:
            process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in errors


def test_a_running_request_is_answered_before_the_server_ends(program: str) -> None:
    with started(program, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        url = httpx2.URL(process.stdout.readline().split()[-1])
        with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
            connection.sendall(raw_request(steps=SLOW))
            while httpx2.get(url.join("/health")).json()["running"] == 0:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
        assert process.wait(30) == 0


@pytest.mark.parametrize("command", [["generate", "a red car"], ["serve", "--port", "0"], ["info"]])
def test_a_missing_checkpoint_is_told_in_a_sentence(command: list[str], run: Run, tmp_path: Path) -> None:
    result = run(*command, "--checkpoint", str(tmp_path / "nothing"))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert str(tmp_path / "nothing") in result.stderr.splitlines()[-1]
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_told_in_a_sentence(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", "--port", str(port))
    assert result.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in result.stderr


def test_help_comes_at_once(run: Run) -> None:
    started = time.monotonic()
    result = run("--help")
    assert result.returncode == 0
    assert {"generate", "serve", "info"} <= set(result.stdout.split())
    assert time.monotonic() - started < 5
