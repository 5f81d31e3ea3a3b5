"""Every refusal has a fitting status, one shape, and a sentence that names the value and what is accepted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from twinshot_server.answers import Problem

JSON = {"Content-Type": "application/json"}


def refused(response: Any, status: int) -> tuple[str, str | None]:
    """The sentence and the field of a refusal, after checking its form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert set(response.json()) == set(Problem.model_fields)
    problem = Problem.model_validate_json(response.content)
    assert problem.request_id == response.headers["x-request-id"]
    assert (problem.status, problem.type) == (status, f"urn:twinshot:problem:{problem.code}")
    assert "Traceback" not in problem.detail
    assert "\n" not in problem.detail
    assert problem.detail.endswith(".")
    return problem.detail, problem.param


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": " \n\t"}, "prompt", "empty"),
        ({"prompt": 5}, "prompt", "not 5"),
        ({"prompt": None}, "prompt", "not null"),
        ({"prompt": ["a"]}, "prompt", 'not ["a"]'),
        ({"prompt": {"a": [1]}}, "prompt", "string"),
        ({"prompt": "a" * 4001}, "prompt", "has 4001 characters; at most 4000"),
        ({"prompt": "a\x00b"}, "prompt", "U+0000 at position 1"),
        ({"prompt": "a\x1b[2J"}, "prompt", "U+001B"),
        ({"prompt": "a\x85"}, "prompt", "U+0085"),
        ({"prompt": "\ud800"}, "prompt", "U+D800"),
        ({"seed": -1}, "seed", "greater than or equal to 0, not -1"),
        ({"seed": 2**32}, "seed", "less than or equal to 4294967295, not 4294967296"),
        ({"seed": "7"}, "seed", 'valid integer, not "7"'),
        ({"seed": 7.0}, "seed", "not 7.0"),
        ({"seed": True}, "seed", "not true"),
        ({"seed": float("nan")}, "seed", "not NaN"),
        ({"seed": float("inf")}, "seed", "not Infinity"),
        ({"steps": 0}, "steps", "not 0"),
        ({"steps": -3}, "steps", "not -3"),
        ({"steps": 1.5}, "steps", "not 1.5"),
        ({"steps": None}, "steps", "not null"),
        ({"steps": 3}, "steps", "3 steps are not supported; supported: 1 to 2"),
        ({"width": -64, "height": 32}, "width", "not -64"),
        ({"width": "64", "height": 32}, "width", 'not "64"'),
        ({"width": 64}, None, "go together"),
        ({"width": 65, "height": 32}, "size", "size 65x32 is not supported; supported: 64x32"),
        ({"width": 10**30, "height": 32}, "size", "not supported"),
        ({"size": "64"}, "size", "is '64'; it must look like 256x256"),
        ({"size": "0x0"}, "size", "must look like"),
        ({"size": "-1x5"}, "size", "must look like"),
        ({"size": "64x32\n"}, "size", "must look like"),
        ({"size": "６４x３２"}, "size", "must look like"),
        ({"size": "9" * 5000}, "size", "must look like"),
        ({"size": "512x512"}, "size", "size 512x512 is not supported"),
        ({"size": "64x32", "width": 64, "height": 32}, None, "give one of them"),
        ({"format": "gif"}, "format", "'png', 'jpeg' or 'webp', not \"gif\""),
        ({"format": "PNG"}, "format", 'not "PNG"'),
        ({"quality": 0, "format": "jpeg"}, "quality", "not 0"),
        ({"quality": 101, "format": "jpeg"}, "quality", "not 101"),
        ({"quality": 50, "format": "png"}, None, "png is lossless"),
        ({"n": 0}, "n", "greater than or equal to 1, not 0"),
        ({"n": 11}, "n", "at most 10 pictures at a time, not 11"),
        ({"n": 65}, "n", "less than or equal to 64, not 65"),
        ({"n": 1.0}, "n", "not 1.0"),
        ({"deadline_ms": 0}, "deadline_ms", "not 0"),
        ({"deadline_ms": 1e999}, "deadline_ms", "not Infinity"),
        ({"priority": "urgent"}, "priority", "'interactive' or 'batch', not \"urgent\""),
        ({"adapter": "../x"}, "adapter", 'not "../x"'),
        ({"adapter": "ink"}, "adapter", "'ink' is not loaded; loaded: none"),
        ({"stream": "yes"}, "stream", 'not "yes"'),
        ({"stream": 1}, "stream", "not 1"),
        ({"guidance": 0.5}, "guidance", "greater than or equal to 1, not 0.5"),
        ({"guidance": 20.5}, "guidance", "less than or equal to 20, not 20.5"),
        ({"guidance": "4"}, "guidance", 'not "4"'),
        ({"guidance": True}, "guidance", "not true"),
        ({"guidance": 1e999}, "guidance", "not Infinity"),
        ({"guidance": None}, "guidance", "not null"),
        ({"guidance": 4.0}, "guidance", "The guidance 4 is not supported"),
        ({"cfg": 4}, "cfg", "no such field; known are prompt, n, seed, size"),
        ({"__proto__": {}}, "__proto__", "no such field"),
        ({"\ud800": 1}, None, "not valid Unicode"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], param: str | None, said: str, client: TestClient) -> None:
    body = json.dumps({"prompt": "a red car"} | fields)
    message, at_fault = refused(client.post("/generate", content=body, headers=JSON), 422)
    assert said in message
    assert at_fault == param
    assert len(message) < 300


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "must be a JSON object"),
        ("[]", "must be a JSON object"),
        ('"a red car"', "must be a JSON object"),
        ("null", "must be a JSON object"),
        ("{}", "prompt: this field is required"),
        ("a red car", "not valid JSON: Expecting value at character 0"),
        ('{"prompt": "a"', "not valid JSON"),
        ('{"prompt": "a",}', "not valid JSON"),
    ],
)
def test_wrong_bodies(body: str, said: str, client: TestClient) -> None:
    assert said in refused(client.post("/generate", content=body, headers=JSON), 422)[0]


@pytest.mark.parametrize(
    "body", [b"[" * 60_000, b'{"prompt":"a","seed":' + b"9" * 5000 + b"}", b'{"prompt": "\xff\xfe"}']
)
def test_what_no_json_parser_reads(body: bytes, client: TestClient) -> None:
    message, _ = refused(client.post("/generate", content=body, headers=JSON), 400)
    assert "cannot be read as JSON" in message


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_other_content_types(media_type: str, client: TestClient) -> None:
    response = client.post("/generate", content='{"prompt": "a"}', headers={"Content-Type": media_type})
    assert "sent as application/json" in refused(response, 422)[0]


def test_huge_bodies_declared_or_not(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    for content in (b" " * 70_000, chunks()):
        message, _ = refused(client.post("/generate", content=content, headers=JSON), 413)
        assert "larger than the 65536 bytes" in message


def test_an_unknown_accept(client: TestClient) -> None:
    response = client.post("/generate", json={"prompt": "a"}, headers={"Accept": "text/plain"})
    assert "image/png" in refused(response, 406)[0]


def test_unknown_path_and_method(client: TestClient) -> None:
    assert "/docs lists" in refused(client.get("/nope"), 404)[0]
    assert "This path takes POST" in refused(client.get("/generate"), 405)[0]
    assert client.get("/generate").headers["allow"] == "POST"
    for path in ("/../etc/passwd", "/static/../app.py", "/static/%2e%2e/app.py", "/%00", "/static"):
        refused(client.get(path), 404)


def test_an_unexpected_failure_tells_no_secrets(client: TestClient, engine: Any) -> None:
    engine.failure = RuntimeError("CUDA out of memory at secret/path.py")
    response = client.post("/generate", json={"prompt": "a red car"})
    message, _ = refused(response, 500)
    assert "secret" not in message
    assert response.json()["code"] == "internal_error"
    engine.failure = None
    assert client.post("/generate", json={"prompt": "a red car"}).status_code == 200


def test_refused_requests_never_reach_the_engine(client: TestClient, engine: Any) -> None:
    client.post("/generate", json={"prompt": ""})
    client.post("/generate", json={"prompt": "a", "size": "512x512"})
    assert engine.batches == []
