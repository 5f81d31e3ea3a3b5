"""The WebSocket: newest wins, frames are binary, garbage is answered in words."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serving import dispatcher_of, until
from starlette.websockets import WebSocketDisconnect

from twinshot_server.processes.messages import Cost
from twinshot_server.routes.realtime import HEADER


def frame(data: bytes) -> tuple[int, int, int, tuple[int, int], Image.Image]:
    number, seed, microseconds, width, height = HEADER.unpack(data[: HEADER.size])
    return number, seed, microseconds, (width, height), Image.open(io.BytesIO(data[HEADER.size :]))


def test_a_prompt_becomes_a_frame(client: TestClient) -> None:
    assert HEADER.size == 16
    with client.websocket_connect("/realtime") as session:
        session.send_json({"id": 5, "prompt": "a red car", "seed": 7})
        number, seed, microseconds, size, image = frame(session.receive_bytes())
        assert (number, seed, size) == (5, 7, (64, 32))
        assert (image.format, image.size) == ("JPEG", (64, 32))
        assert 0 < microseconds < 10e6
        session.send_json({"id": 6, "prompt": "a", "seed": 9, "format": "png", "size": "32x32", "steps": 2})
        number, seed, _, size, image = frame(session.receive_bytes())
        assert (number, seed, size, image.format, image.getpixel((0, 0))) == (
            6,
            9,
            (32, 32),
            "PNG",
            (9, 9, 9),
        )
        assert "twinshot_realtime_sessions 1.0" in client.get("/metrics").text
    until(lambda: "twinshot_realtime_sessions 0.0" in client.get("/metrics").text)


def test_where_the_time_went_is_told_to_those_who_ask(client: TestClient) -> None:
    with client.websocket_connect("/realtime?timings=true") as session:
        session.send_json({"id": 5, "prompt": "a red car", "seed": 7})
        told = session.receive_json()
        assert (told["type"], told["id"]) == ("timings", 5)
        spent = told["timings_ms"]
        assert list(spent) == ["queue", "text", "denoise", "decode", "encode"]
        assert (spent["text"], spent["denoise"], spent["decode"]) == (1.0, 2.0, 3.0)
        number, _, microseconds, _, _ = frame(session.receive_bytes())
        assert number == 5
        assert microseconds / 1000 >= spent["queue"] + spent["encode"]


def test_the_newest_wins_and_what_it_supersedes_is_told_and_counted(client: TestClient, engine: Any) -> None:
    dispatcher = dispatcher_of(client)
    engine.hold()
    with client.websocket_connect("/realtime") as session:
        session.send_json({"id": 1, "prompt": "a", "seed": 1})
        assert engine.busy.wait(10)
        for number in (2, 3, 4):
            session.send_json({"id": number, "prompt": "a", "seed": number})
        assert [session.receive_json() for _ in range(2)] == [
            {"type": "superseded", "id": 2},
            {"type": "superseded", "id": 3},
        ]
        assert dispatcher.waiting == 0
        engine.release()
        assert [frame(session.receive_bytes())[0] for _ in range(2)] == [1, 4]
    assert [request.seed for batch in engine.batches for request in batch] == [1, 4]
    assert "twinshot_realtime_dropped_total 2.0" in client.get("/metrics").text


def test_what_waits_behind_others_is_superseded_too(client: TestClient, engine: Any) -> None:
    dispatcher = dispatcher_of(client)
    dispatcher.costs.install([Cost((64, 32), 1, 1, 1.0)])  # so that nothing is sent to the engine ahead
    engine.hold()
    with client.websocket_connect("/realtime") as other, client.websocket_connect("/realtime") as session:
        other.send_json({"id": 1, "prompt": "a", "seed": 1})
        assert engine.busy.wait(10)
        session.send_json({"id": 2, "prompt": "a", "seed": 2})
        until(lambda: dispatcher.waiting == 1)
        session.send_json({"id": 3, "prompt": "a", "seed": 3})
        assert session.receive_json() == {"type": "superseded", "id": 2}
        until(lambda: dispatcher.waiting == 1)
        engine.release()
        assert frame(session.receive_bytes())[0] == 3
    assert [request.seed for batch in engine.batches for request in batch] == [1, 3]


@pytest.mark.parametrize(
    ("message", "number", "said"),
    [
        ("", None, "Send a JSON object"),
        ("[]", None, "Send a JSON object"),
        ("{" * 5000, None, "Send a JSON object"),
        ("nonsense", None, "Send a JSON object"),
        ("{}", None, "id: input should be a valid integer, not null"),
        ('{"id": -1, "prompt": "a"}', None, "greater than or equal to 0"),
        ('{"id": 4294967296, "prompt": "a"}', None, "less than or equal to 4294967295"),
        ('{"id": NaN, "prompt": "a"}', None, "valid integer, not NaN"),
        ('{"id": 1}', 1, "prompt: this field is required"),
        ('{"id": 1, "prompt": ""}', 1, "prompt is empty"),
        ('{"id": 1, "prompt": "\\ud800"}', 1, "U+D800"),
        ('{"id": 1, "prompt": "a", "seed": 1e999}', 1, "seed"),
        ('{"id": 1, "prompt": "a", "n": 2}', 1, "a frame is one picture"),
        ('{"id": 1, "prompt": "a", "size": "9x9"}', 1, "9x9 is not supported"),
        ('{"id": 1, "prompt": "a", "colour": 2}', 1, "no such field; known are prompt"),
    ],
)
def test_garbage_is_told_and_the_session_goes_on(
    message: str, number: int | None, said: str, client: TestClient
) -> None:
    with client.websocket_connect("/realtime") as session:
        session.send_text(message)
        told = session.receive_json()
        assert (told["type"], told["id"]) == ("error", number)
        assert said in told["problem"]["detail"]
        assert told["problem"]["status"] in {400, 422}
        session.send_bytes(b"\x00\xff")
        assert session.receive_json()["problem"]["status"] == 400
        session.send_json({"id": 2, "prompt": "a"})
        assert frame(session.receive_bytes())[0] == 2


def test_a_failure_is_told_without_secrets(client: TestClient, engine: Any) -> None:
    engine.failure = RuntimeError("secret")
    with client.websocket_connect("/realtime") as session:
        session.send_json({"id": 1, "prompt": "a"})
        told = session.receive_json()
        assert (told["id"], told["problem"]["status"]) == (1, 500)
        assert "secret" not in json.dumps(told)
        engine.failure = None
        session.send_json({"id": 2, "prompt": "a"})
        assert frame(session.receive_bytes())[0] == 2


def test_leaving_drops_what_waits(client: TestClient, engine: Any) -> None:
    dispatcher = dispatcher_of(client)
    engine.hold()
    with client.websocket_connect("/realtime") as session:
        session.send_json({"id": 1, "prompt": "a"})
        assert engine.busy.wait(10)
        session.send_json({"id": 2, "prompt": "a"})
    engine.release()
    until(lambda: dispatcher.running == dispatcher.waiting == 0)
    assert len(engine.batches) == 1


def test_pages_of_other_sites_may_not_connect(make_client: Callable[..., TestClient]) -> None:
    client = make_client(cors_origins="https://friend.example")
    for origin in ("https://friend.example", "http://testserver"):
        with client.websocket_connect("/realtime", headers={"Origin": origin}):
            pass
    for origin in ("https://evil.example", "null", "http://testserver.evil.example"):
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect("/realtime", headers={"Origin": origin}),
        ):
            pass


def test_a_key_can_come_as_a_subprotocol(make_client: Callable[..., TestClient]) -> None:
    client = make_client(api_keys="ann=a-secret-key")
    protocol = "twinshot.key." + base64.urlsafe_b64encode(b"a-secret-key").decode().rstrip("=")
    with client.websocket_connect("/realtime", subprotocols=["twinshot", protocol]) as session:
        assert session.accepted_subprotocol == "twinshot"
        session.send_json({"id": 1, "prompt": "a"})
        session.receive_bytes()
    for wrong in ([], ["twinshot.key.eA"], ["twinshot.key.\x7f!"]):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/realtime", subprotocols=wrong):
            pass
