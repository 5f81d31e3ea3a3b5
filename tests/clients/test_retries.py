"""Which calls are tried again, when, and that it is the same picture that is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
import pytest
from asking import Asker
from canned import Recorder, image_file

from twinshot import APIStatusError, TwinshotError
from twinshot._errors import Answer, APIConnectionError, status_error
from twinshot._retries import Retries


class Failing(Recorder):
    """Fails with each of these, then answers."""

    def __init__(self, *failures: httpx2.Response | httpx2.TransportError) -> None:
        super().__init__()
        self._failures = iter(failures)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        answer = super().__call__(request)
        failure = next(self._failures, answer)
        if isinstance(failure, Exception):
            raise failure
        return failure


def failing(error: str) -> APIConnectionError:
    return APIConnectionError(error)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_what_passes_is_tried_again(status: int, ask: Asker, pauses: list[float]) -> None:
    server = Failing(httpx2.Response(status), httpx2.ConnectError("refused"))
    assert ask(server, "generate", "a").bytes == image_file()
    assert len(server.requests) == 3
    assert 0.375 <= pauses[0] <= 0.5
    assert 0.75 <= pauses[1] <= 1.0


def test_a_retry_asks_for_the_same_picture_under_the_same_name(ask: Asker, pauses: list[float]) -> None:
    server = Failing(httpx2.Response(503), httpx2.ReadTimeout("late"))
    picture = ask(server, "generate", "a")
    bodies = {request.content for request in server.requests}
    assert len(server.requests) == 3
    assert [json.loads(body)["seed"] for body in bodies] == [picture.seed]
    assert len({request.headers["X-Request-Id"] for request in server.requests}) == 1


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 406, 413, 422])
def test_what_does_not_pass_is_told_at_once(status: int, ask: Asker, pauses: list[float]) -> None:
    server = Failing(httpx2.Response(status))
    with pytest.raises(APIStatusError):
        ask(server, "generate", "a")
    assert (len(server.requests), pauses) == (1, [])


def test_a_deadline_that_passed_stays_passed(ask: Asker, pauses: list[float]) -> None:
    server = Failing(httpx2.Response(504, json={"detail": "Late.", "code": "deadline_exceeded"}))
    with pytest.raises(APIStatusError, match="Late"):
        ask(server, "generate", "a", deadline_ms=5)
    assert pauses == []


@pytest.mark.parametrize("retries", [0, 1, 4])
def test_the_last_failure_is_told(retries: int, ask: Asker, pauses: list[float]) -> None:
    failures = [httpx2.Response(500, json={"detail": f"number {number}"}) for number in range(9)]
    server = Failing(*failures)
    with pytest.raises(APIStatusError, match=f"number {retries}"):
        ask(server, "generate", "a", settings={"max_retries": retries})
    assert len(server.requests) == retries + 1 == len(pauses) + 1


def test_nobody_comes_back_earlier_than_told(ask: Asker, pauses: list[float]) -> None:
    server = Failing(*[httpx2.Response(429, headers={"Retry-After": "3"})] * 2)
    ask(server, "generate", "a")
    assert len(pauses) == 2
    assert all(3 <= pause <= 3.75 for pause in pauses)


def test_a_server_that_asks_for_too_long_is_not_waited_for(ask: Asker, pauses: list[float]) -> None:
    server = Failing(httpx2.Response(503, headers={"Retry-After": "3600"}))
    with pytest.raises(APIStatusError) as caught:
        ask(server, "generate", "a")
    assert caught.value.retry_after == 3600
    assert pauses == []


@pytest.mark.parametrize("method", ["generate", "stream", "models", "health"])
def test_every_method_tries_again(method: str, ask: Asker, pauses: list[float]) -> None:
    server = Failing(*[httpx2.ConnectError("refused")] * 9)
    with pytest.raises(APIConnectionError):
        ask(server, method, *["a"] * (method in {"generate", "stream"}))
    assert len(server.requests) == 3


def pauses_of(most: int, error: TwinshotError) -> Iterator[float]:
    retries = Retries(most)
    while (pause := retries.pause(error)) is not None:
        yield pause


def test_pauses_double_up_to_a_limit_and_differ() -> None:
    expected = [0.5, 1, 2, 4, 8, 8, 8]
    pauses = list(pauses_of(7, failing("down")))
    assert len(pauses) == 7
    for pause, longest in zip(pauses, expected, strict=True):
        assert 0.75 * longest <= pause <= longest
    firsts = [next(pauses_of(1, failing("down"))) for _ in range(50)]
    assert len(set(firsts)) > 40
    assert max(firsts) - min(firsts) > 0.05


def test_what_is_asked_for_differs_only_upwards() -> None:
    headers = {"retry-after-ms": "2000"}
    error = status_error(Answer("http://server", 429, "", headers, b"", ""))
    asked = list(pauses_of(50, error))
    assert all(2 <= pause <= 2.5 for pause in asked)
    assert max(asked) - min(asked) > 0.1
