"""Around every request: an id, limits on its body, headers for browsers, a log line, counts and spans."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twinshot_server.access.paths import PICTURES, route_path
from twinshot_server.lifecycle import Lifecycle
from twinshot_server.metrics import Metrics
from twinshot_server.tracing import Tracer

_log = structlog.stdlib.get_logger("twinshot")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class LimitBody:
    """Refuses bodies of more than `limit` bytes (413), or that take longer than `seconds` to arrive (408)."""

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app = app
        self._limit = limit
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http":
            declared = int(Headers(scope=scope).get("content-length", "0"))
            receive = _Body(receive, declared, self._limit, self._seconds).receive
        await self._app(scope, receive, send)


class _Body:
    """One request's body on its way in, counted and timed; what comes after it is not."""

    def __init__(self, receive: Receive, declared: int, limit: int, seconds: float) -> None:
        self._receive = receive
        self._size = declared
        self._limit = limit
        self._seconds = seconds
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._received = 0
        self._complete = False

    async def receive(self) -> Message:
        """The next piece. Raises HTTPException."""
        if self._complete:
            return await self._receive()
        self._check_size()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            said = f"The body did not arrive within {self._seconds:g} s"
            raise HTTPException(408, said, {"Connection": "close"}) from None
        self._received += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        self._check_size()
        return message

    def _check_size(self) -> None:
        if max(self._size, self._received) > self._limit:
            said = f"The body is larger than the {self._limit} bytes that are accepted"
            raise HTTPException(413, said, {"Connection": "close"})


class Observe:
    """Gives each request its `X-Request-Id` and the headers that protect browsers, and tells how it ended.

    A client's own `X-Request-Id` of 1 to 64 letters, digits, dots, dashes or underscores is kept. What routes
    put into `scope["state"]["facts"]` is logged with the request; `outcome` there is the status that a
    stream, which begins with 200, ended with. While the server drains each answer is its connection's last,
    so that clients open their next one elsewhere and nobody's is closed under a request.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracer: Tracer, lifecycle: Lifecycle) -> None:
        self._app = app
        self._metrics = metrics
        self._tracer = tracer
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        started, state = time.monotonic(), scope.setdefault("state", {})
        state |= {"request_id": _request_id(scope), "facts": {}, "arrived": started}
        answer = _Answer(send, state["request_id"], self._lifecycle)
        with self._tracer.request(scope) as span:
            try:
                await self._app(scope, receive, answer.send)
            finally:
                status = state["facts"].pop("outcome", answer.status)
                self._finish(scope, status, time.monotonic() - started, answer.sent)
                span.finish(status, state["facts"])

    def _finish(self, scope: Scope, status: int, seconds: float, sent: int) -> None:
        state = scope["state"]
        asks_pictures = scope.get("method") == "POST" and route_path(scope) in PICTURES
        caller = state["caller"].name if "caller" in state else None
        if asks_pictures:
            self._metrics.count_request(status, seconds, caller or "none", sent)
        facts: dict[str, Any] = {
            "request_id": state["request_id"],
            "method": scope.get("method", "WEBSOCKET"),
            # As it was encoded, so without control characters.
            "path": scope["raw_path"].decode("ascii", "backslashreplace"),
            "status": status,
            "ms": round(seconds * 1000, 2),
            **({"key": caller} if caller else {}),
            **state["facts"],
        }
        write = _log.info if asks_pictures else _log.debug
        write("request", **facts)


class _Answer:
    """One answer on its way out: what it began with, and how many bytes it had."""

    def __init__(self, send: Send, request_id: str, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self.status = 500
        self.sent = 0
        self._send = send
        self._request_id = request_id

    async def send(self, message: Message) -> None:
        """Pass one message on."""
        match message["type"]:
            case "http.response.start":
                self.status = message["status"]
                self._add_headers(MutableHeaders(scope=message))
            case "websocket.accept":
                self.status = 101
            case "websocket.close" if self.status != 101:
                self.status = 403
        self.sent += len(message.get("body", b""))
        await self._send(message)

    def _add_headers(self, headers: MutableHeaders) -> None:
        headers["X-Request-Id"] = self._request_id
        if self._lifecycle.draining:
            headers["Connection"] = "close"
        for name, value in _HEADERS.items():
            headers.setdefault(name, value)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
