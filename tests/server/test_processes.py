"""Front, engine and encoder as processes of their own, with an engine that sleeps: one ends, and then?"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from soak.servers import PROGRAM, STUB, Server, eventually, exists, running

HEAD = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
FAST = {"TWINSHOT_STUB_SIZES": "256x256,128x128", "TWINSHOT_STUB_MS": "20"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path, *STUB, "--hang-seconds", "0.5", "--body-seconds", "0.5", **FAST) as started:
        yield started


def test_the_same_seed_is_the_same_bytes_under_any_load(tmp_path: Path) -> None:
    with running(tmp_path, *STUB, "--replicas", "2", **FAST) as server:
        asked = [{"seed": seed % 5, "size": ("256x256", "128x128")[seed % 2]} for seed in range(40)]
        alone = {str(fields): server.post(**fields).content for fields in asked[:10]}
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda fields: (str(fields), server.post(**fields).content), asked))
        assert all(alone[key] == content for key, content in answers)
        assert len(set(alone.values())) == 10


def in_hand(server: Server) -> float:
    return sum(server.metric(f"twinshot_requests_{state}") for state in ("waiting", "running"))


@pytest.mark.parametrize("how", ["kill -9", "!crash"])
def test_an_engine_that_ends_costs_only_what_it_was_drawing(how: str, server: Server) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(server.post, seed=seed) for seed in range(10)]
        if how == "kill -9":
            # All have been accepted: one that comes while there is no engine is refused, and rightly.
            eventually(lambda: sum(answer.done() for answer in answers) + in_hand(server) >= len(answers))
            server.kill_child("engine")
        else:
            answers.append(pool.submit(server.post, how))
        statuses = [answer.result(30).status_code for answer in answers]
    assert statuses.count(500) <= 2
    assert set(statuses) <= {200, 500, 503}
    assert statuses.count(200) >= len(statuses) - 3
    eventually(lambda: server.health() == 200)
    assert server.post().status_code == 200
    assert server.metric('twinshot_engine_restarts_total{reason="exit"}') == 1
    assert server.health("/livez") == 200


def test_an_engine_that_hangs_is_noticed_and_replaced(server: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        hanging = pool.submit(server.post, "!hang")
        eventually(lambda: server.health("/livez") == 503)
        assert hanging.result(10).status_code == 500
    eventually(lambda: server.health("/livez") == server.health() == 200)
    assert server.post().status_code == 200
    assert server.metric('twinshot_engine_restarts_total{reason="hang"}') == 1


def test_a_restarted_engine_has_its_adapters_again(tmp_path: Path) -> None:
    adapters = {"TWINSHOT_ADAPTER": "fast=/y", "TWINSHOT_ADMIN_KEY": "operators-secret"}
    with running(tmp_path, *STUB, **adapters, **FAST) as server:
        operator = {"Authorization": "Bearer operators-secret"}
        url = f"{server.url}/admin/adapters"
        assert httpx2.put(f"{url}/ink", json={"source": "/x"}, headers=operator).status_code == 200
        inked = server.post(seed=7, adapter="ink").content
        assert httpx2.put(f"{url}/guest", json={"source": "/z"}, headers=operator).status_code == 200
        for name in ("fast", "guest"):
            assert httpx2.delete(f"{url}/{name}", headers=operator).status_code == 200
        server.kill_child("engine")
        eventually(lambda: server.metric('twinshot_engine_restarts_total{reason="exit"}') == 1)
        eventually(lambda: server.health() == 200)
        assert httpx2.get(url, headers=operator).json() == {"adapters": ["ink"]}
        eventually(lambda: server.post(seed=7, adapter="ink").content == inked)
        assert server.post(adapter="fast").status_code == 422
        assert httpx2.delete(f"{url}/ink", headers=operator).json() == {"adapters": []}
    assert "adapter not restored" not in server.log.read_text()


def test_children_do_not_know_the_keys(tmp_path: Path) -> None:
    with running(tmp_path, *STUB, TWINSHOT_API_KEYS="ann=anns-secret", **FAST) as server:
        assert server.post().status_code == 401
        for pid in server.children("engine") + server.children("encoder"):
            for source in ("environ", "cmdline"):
                assert b"anns-secret" not in Path(f"/proc/{pid}/{source}").read_bytes()
    assert "anns-secret" not in server.log.read_text()


def test_an_encoder_that_ends_loses_nothing(server: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(server.post, seed=seed, format="webp") for seed in range(20)]
        eventually(lambda: server.metric("twinshot_requests_running") > 0)
        server.kill_child("encoder")
        assert {answer.result(30).status_code for answer in answers} == {200}
    assert server.health("/livez") == 200


def test_a_front_that_ends_takes_its_children_along(server: Server) -> None:
    children = server.children("engine") + server.children("encoder")
    assert len(children) == 2
    with ThreadPoolExecutor(1) as pool:
        pool.submit(server.post, "!hang")
        eventually(lambda: server.metric("twinshot_requests_running") > 0)
        server.process.kill()
        eventually(lambda: not any(map(exists, children)))


def test_another_engine_goes_on_while_one_is_replaced(tmp_path: Path) -> None:
    slow_start = FAST | {"TWINSHOT_STUB_LOAD_MS": "1500"}
    with running(tmp_path, *STUB, "--replicas", "2", **slow_start) as server:
        eventually(lambda: server.metric("twinshot_engines_available") == 2)
        server.kill_child("engine")
        eventually(lambda: server.metric("twinshot_engines_available") == 1)
        assert server.health() == 200
        assert {server.post(seed=seed).status_code for seed in range(5)} == {200}
        eventually(lambda: server.metric("twinshot_engines_available") == 2)


def test_a_stop_finishes_what_was_accepted(tmp_path: Path) -> None:
    slow = FAST | {"TWINSHOT_STUB_MS": "60"}
    with running(tmp_path, *STUB, "--drain-seconds", "0.5", **slow) as server:
        with ThreadPoolExecutor(20) as pool:
            answers = [pool.submit(server.post, seed=seed) for seed in range(20)]
            eventually(lambda: server.metric("twinshot_requests_waiting") > 5)
            server.process.send_signal(signal.SIGTERM)
            eventually(lambda: server.health() == 503)
            assert server.post().status_code == 200  # nobody fails who has not heard yet
            assert {answer.result(30).status_code for answer in answers} == {200}
        assert server.process.wait(20) == 0
    assert "Traceback" not in server.log.read_text()


def test_clients_that_leave_leave_nothing_behind(server: Server) -> None:
    server.post()
    eventually(lambda: server.metric("twinshot_requests_running") == 0)
    files = server.open_files()
    url = httpx2.URL(server.url)
    body = b'{"prompt": "a", "stream": %s}'
    for number in range(60):
        content = body % (b"true" if number % 2 else b"false")
        with socket.create_connection((url.host, url.port or 80)) as connection:
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(content) + content)
            time.sleep(number % 3 / 100)
    eventually(server.is_idle)
    eventually(lambda: server.open_files() <= files)
    assert server.post().status_code == 200


def raw(server: Server, content: bytes, *, half_close: bool = False) -> bytes:
    """What comes back for these bytes until the connection closes."""
    url = httpx2.URL(server.url)
    with socket.create_connection((url.host, url.port or 80), timeout=15) as connection:
        connection.sendall(content)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        received = bytearray()
        while part := connection.recv(65536):
            received += part
    return bytes(received)


def test_garbage_in_a_websocket(server: Server) -> None:
    hello = (
        b"GET /realtime HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    unmasked, reserved, huge = b"\x81\x05hello", b"\xff\xff\xff", b"\x81\xff\x7f" + b"\xff" * 11
    for garbage in (b"", unmasked, reserved, huge, b"\x00" * 300, b"GET / HTTP/1.1\r\n\r\n"):
        assert raw(server, hello + garbage, half_close=True).startswith(b"HTTP/1.1 101")
    assert raw(server, hello.replace(b"13\r\n", b"12\r\n")).startswith(b"HTTP/1.1 400")
    eventually(lambda: server.metric("twinshot_realtime_sessions") == 0)
    assert server.post().status_code == 200
    assert "Traceback" not in server.log.read_text()


def test_hostile_connections(server: Server) -> None:
    assert raw(server, HEAD + b"Content-Length: 50\r\n\r\n{").startswith(b"HTTP/1.1 408")
    assert raw(server, HEAD + b"Content-Length: 10485760\r\n\r\n" + b"x" * 1000).startswith(b"HTTP/1.1 413")
    assert raw(server, b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000).startswith(b"HTTP/1.1 400")
    assert raw(server, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").startswith(b"HTTP/1.1 400")
    assert raw(server, b"GET / HTTP/1.1\r\nX: ") == b""  # headers that never end
    raw(server, HEAD + b"Content-Length: 50\r\n\r\n{", half_close=True)
    raw(server, b"", half_close=True)
    assert server.post().status_code == 200
    assert "Traceback" not in server.log.read_text()


def test_a_key_file_that_is_wrong_is_told_in_a_sentence(tmp_path: Path) -> None:
    command = [PROGRAM, "serve", "--port", "0", "--api-keys-file", str(tmp_path / "nothing")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert "cannot read the API keys" in result.stderr.splitlines()[-1]
