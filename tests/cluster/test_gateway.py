"""The gateway on a real socket, before a server that tells what it was sent, or answers as a test wants."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from twinshot_server.cluster.gateway import build, create_gateway
from twinshot_server.listening import address, listen

MOST = 2000


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """An application on a port of its own."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield address(listener)
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
        listener.close()


class Models:
    """Applications at `/one` and `/two`, which repeat what they are asked; `left`: a reader went away."""

    def __init__(self) -> None:
        self.left = threading.Event()
        self.first_read = threading.Event()
        self.app = Starlette(
            routes=[
                Route("/{model}/v1/models", self.list_models),
                Route("/{model}/slow", self.answer_slowly, methods=["POST"]),
                Route("/{model}/silent", self.never_answer, methods=["POST"]),
                Route("/{model}/{path:path}", self.repeat, methods=["GET", "POST", "PUT", "DELETE"]),
            ]
        )

    async def repeat(self, request: Request) -> Response:
        told = {
            "model": request.path_params["model"],
            "path": request.path_params["path"],
            "method": request.method,
            "query": request.url.query,
            "headers": dict(request.headers),
            "body": (await request.body()).decode(),
        }
        return JSONResponse(told, 418, {"X-Seed": "7", "Server-Timing": "text;dur=1"})

    async def list_models(self, request: Request) -> Response:
        if request.headers.get("authorization") == "Bearer wrong":
            return JSONResponse({"error": {"message": "no"}}, 401)
        return JSONResponse({"object": "list", "data": [{"id": "inner", "steps": [1]}]})

    async def answer_slowly(self, _request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            try:
                yield b"event: queued\n\n"
                while not self.first_read.is_set():
                    await asyncio.sleep(0.01)
                yield b"event: done\n\n"
                await asyncio.sleep(60)
            finally:
                self.left.set()

        return StreamingResponse(pieces(), media_type="text/event-stream")

    async def never_answer(self, request: Request) -> Response:
        await request.body()
        assert (await request.receive())["type"] == "http.disconnect"
        self.left.set()
        return Response()


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def client(models: Models) -> Iterator[httpx2.Client]:
    with serving(models.app) as upstream, serving(create_gateway(["one", "two"], upstream, MOST)) as url:
        with httpx2.Client(base_url=url, timeout=10) as http:
            yield http


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ({"prompt": "a", "model": "one"}, "one"),
        ({"prompt": "a", "model": "two"}, "two"),
        ({"prompt": "a"}, "one"),
        ({"prompt": "a", "model": None}, "one"),
        ([1], "one"),
        ("no json", "one"),
    ],
)
def test_openais_model_says_who_draws(client: httpx2.Client, body: Any, model: str) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    told = client.post("/v1/images/generations", content=content).json()
    assert (told["model"], told["path"], told["body"]) == (model, "v1/images/generations", content)


@pytest.mark.parametrize("name", ["three", "../two", 7, {"a": 1}, ""])
def test_other_models_are_refused_by_name(client: httpx2.Client, name: Any) -> None:
    answer = client.post("/v1/images/generations", json={"prompt": "a", "model": name})
    error = answer.json()["error"]
    assert answer.status_code == 404
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert error["message"] == f"There is no model {name!r}; there are one, two."


def test_what_names_no_model_goes_to_the_first(client: httpx2.Client) -> None:
    told = client.post("/generate?a=b%20c", json={"prompt": "a", "model": "two"}).json()
    assert (told["model"], told["path"], told["query"]) == ("one", "generate", "a=b%20c")
    assert client.get("/readyz").json()["path"] == "readyz"
    assert client.put("/admin/adapters/ink", json={}).json()["method"] == "PUT"


def test_headers_pass_both_ways_but_for_those_of_the_connection(client: httpx2.Client) -> None:
    sent = {"Authorization": "Bearer x", "X-Request-Id": "r1", "Accept": "image/png", "Connection": "close"}
    answer = client.post("/generate", content="{}", headers=sent)
    heard = answer.json()["headers"]
    assert (heard["authorization"], heard["x-request-id"], heard["accept"]) == ("Bearer x", "r1", "image/png")
    assert heard.get("connection") != "close"
    assert heard["content-length"] == "2"
    assert answer.status_code == 418
    assert (answer.headers["x-seed"], answer.headers["server-timing"]) == ("7", "text;dur=1")
    assert answer.headers["content-type"] == "application/json"


def test_events_come_as_they_happen_and_leaving_is_passed_on(client: httpx2.Client, models: Models) -> None:
    with client.stream("POST", "/slow", content=b"{}") as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == b"event: queued\n\n"
        models.first_read.set()
        assert next(pieces) == b"event: done\n\n"
    assert models.left.wait(10)


def test_who_leaves_before_the_answer_is_not_drawn_for(client: httpx2.Client, models: Models) -> None:
    with pytest.raises(httpx2.ReadTimeout):
        client.post("/silent", content=b"{}", timeout=0.3)
    assert models.left.wait(10)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(client: httpx2.Client) -> None:
    answer = client.post("/generate", content=b"x" * (MOST + 1))
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert client.post("/generate", content=b"x" * MOST).status_code == 418


def test_models_are_listed_under_the_names_that_requests_use(client: httpx2.Client) -> None:
    listed = client.get("/v1/models").json()
    assert listed["data"] == [{"id": "one", "steps": [1]}, {"id": "two", "steps": [1]}]
    refused = client.get("/v1/models", headers={"Authorization": "Bearer wrong"})
    assert (refused.status_code, refused.json()) == (401, {"error": {"message": "no"}})


@pytest.mark.parametrize(
    ("ask", "kind"),
    [
        (lambda http: http.post("/generate", content=b"{}"), "application/problem+json"),
        (lambda http: http.post("/v1/images/generations", content=b"{}"), "application/json"),
        (lambda http: http.get("/v1/models"), "application/json"),
    ],
)
def test_a_model_that_does_not_answer_is_told_at_once(
    ask: Callable[[httpx2.Client], httpx2.Response], kind: str
) -> None:
    with listen("127.0.0.1", 0) as closed:
        upstream = address(closed)
    with serving(create_gateway(["one"], upstream, MOST)) as url, httpx2.Client(base_url=url) as http:
        answer = ask(http)
    assert (answer.status_code, answer.headers["content-type"]) == (503, kind)
    assert "not answer" in answer.text


def test_a_gateway_without_models_is_refused() -> None:
    with pytest.raises(ValueError, match="models is empty: name at least one"):
        build({"models": []})
