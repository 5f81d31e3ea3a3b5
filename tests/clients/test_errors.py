"""Refusals and failures: which class, whose words, and what it carries."""

from __future__ import annotations

import email.utils
import json
import pickle
import re
import time
from typing import Any

import httpx2
import pytest
from asking import Asker
from canned import Recorder

import twinshot
from twinshot import APIConnectionError, APIStatusError, APITimeoutError, _errors

ONCE = {"max_retries": 0}


def refusing(status: int, **answer: Any) -> Recorder:
    return Recorder(status_code=status, **{"content": b"", "headers": {}, **answer})


def refusal(ask: Asker, server: Recorder) -> APIStatusError:
    with pytest.raises(APIStatusError) as caught:
        ask(server, "generate", "a", settings=ONCE)
    return caught.value


def test_the_tree_at_the_top_of_the_file_is_the_tree() -> None:
    path: list[str] = []
    drawn: dict[str, str] = {}
    for line in (_errors.__doc__ or "").splitlines():
        if (found := re.match(r"[ │├└─]*(?=(\w+Error)\b)", line)) is not None:
            path[found.end() // 4 :] = [found[1]]
            drawn[found[1]] = path[-2] if len(path) > 1 else "Exception"
    public = [getattr(twinshot, name) for name in twinshot.__all__ if name.endswith("Error")]
    assert drawn == {kind.__name__: kind.__base__.__name__ for kind in public}


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (302, "APIStatusError"),
        (400, "BadRequestError"),
        (401, "AuthenticationError"),
        (403, "PermissionDeniedError"),
        (404, "NotFoundError"),
        (413, "APIStatusError"),
        (422, "UnprocessableEntityError"),
        (429, "RateLimitError"),
        (500, "InternalServerError"),
        (503, "InternalServerError"),
        (599, "InternalServerError"),
    ],
)
def test_every_status_has_its_class(status: int, name: str, ask: Asker) -> None:
    error = refusal(ask, refusing(status))
    assert type(error).__name__ == name
    assert error.status == status


def test_a_refusal_carries_the_servers_words(ask: Asker) -> None:
    problem = {"code": "queue_full", "detail": "64 images wait already.", "param": None, "status": 429}
    error = refusal(ask, refusing(429, content=json.dumps(problem).encode(), headers={"X-Request-Id": "abc"}))
    assert (str(error), error.code, error.param) == ("64 images wait already.", "queue_full", None)
    assert error.request_id == "abc"


def test_a_refusal_under_v1_is_read_too(ask: Asker) -> None:
    told = {"error": {"message": "Loading.", "type": "server_error", "param": None, "code": "not_ready"}}
    with pytest.raises(APIStatusError, match=r"Loading\.") as caught:
        ask(refusing(503, content=json.dumps(told).encode()), "models", settings=ONCE)
    assert caught.value.code == "not_ready"


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>Bad Gateway</html>", b'{"error": "busy"}', b"[]", b"\xff", b"[" * 10_000, b"null"],
)
def test_a_refusal_by_something_else_is_told_as_such(content: bytes, ask: Asker) -> None:
    server = refusing(502, content=content)
    error = refusal(ask, server)
    assert str(error) == "http://server/generate answered 502 Bad Gateway"
    assert (error.code, error.param, error.retry_after) == (None, None, None)
    assert error.request_id == server.requests[0].headers["X-Request-Id"]


def test_a_hostile_message_is_cut(ask: Asker) -> None:
    content = json.dumps({"detail": "x" * 1_000_000}).encode()
    assert len(str(refusal(ask, refusing(400, content=content)))) == 2000


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "3"}, 3.0),
        ({"Retry-After": "3", "Retry-After-Ms": "2500"}, 2.5),
        ({"Retry-After": "3", "Retry-After-Ms": "soon"}, 3.0),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "9" * 400}, None),
        ({"Retry-After": "tomorrow"}, None),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "Wed, 99 Oct 2015 07:28:00 GMT"}, None),
        ({}, None),
    ],
)
def test_when_to_come_back(headers: dict[str, str], seconds: float | None, ask: Asker) -> None:
    assert refusal(ask, refusing(429, headers=headers)).retry_after == seconds


def test_when_to_come_back_may_be_a_date(ask: Asker) -> None:
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    seconds = refusal(ask, refusing(429, headers={"Retry-After": date})).retry_after
    assert seconds is not None
    assert 90 < seconds <= 100


@pytest.mark.parametrize("failure", [httpx2.ConnectError("refused"), httpx2.RemoteProtocolError("")])
def test_no_answer(failure: httpx2.TransportError, ask: Asker) -> None:
    ids: list[str] = []

    def fail(request: httpx2.Request) -> httpx2.Response:
        ids.append(request.headers["X-Request-Id"])
        raise failure

    with pytest.raises(
        APIConnectionError, match=r"no answer from http://server: (refused|RemoteP)"
    ) as caught:
        ask(fail, "generate", "a", settings=ONCE)
    assert caught.value.__cause__ is failure
    assert caught.value.request_id == ids[0]
    assert not isinstance(caught.value, APITimeoutError)


def test_too_slow_an_answer(ask: Asker) -> None:
    def fail(_request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ReadTimeout("")

    with pytest.raises(APITimeoutError, match=r"no answer from http://server within 1.5 s"):
        ask(fail, "generate", "a", settings={"timeout": 1.5, "max_retries": 0})


def test_too_slow_a_connection(ask: Asker) -> None:
    def fail(_request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectTimeout("")

    with pytest.raises(APITimeoutError, match="no connection to http://server within 5 s"):
        ask(fail, "generate", "a", settings=ONCE)


def test_errors_survive_the_way_from_another_process(ask: Asker) -> None:
    content = b'{"detail": "No.", "code": "queue_full"}'
    error = refusal(ask, refusing(429, content=content, headers={"Retry-After": "3"}))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.status, copy.code) == ("No.", 429, "queue_full")
    assert (copy.retry_after, copy.request_id) == (3.0, error.request_id)
    timeout = pickle.loads(pickle.dumps(APITimeoutError("late", "abc")))
    assert (str(timeout), timeout.request_id) == ("late", "abc")
