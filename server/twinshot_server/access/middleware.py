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

from twinshot_server.metrics import Metrics
from twinshot_server.tracing import Tracer

_log = structlog.stdlib.get_logger("twinshot")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
PICTURE_PATHS = {"/generate", "/v1/images/generations"}
"""A POST to one of these is a request for pictures, which is counted and logged as such."""

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
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = int(Headers(scope=scope).get("content-length", "0"))
        received, complete = 0, False
        deadline = asyncio.get_running_loop().time() + self._seconds

        async def limited() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            if declared > self._limit:
                raise self._too_large()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise self._too_slow() from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self._limit:
                raise self._too_large()
            return message

        await self._app(scope, limited, send)

    def _too_large(self) -> HTTPException:
        message = f"The body is larger than the {self._limit} bytes that are accepted"
        return HTTPException(413, message, {"Connection": "close"})

    def _too_slow(self) -> HTTPException:
        message = f"The body did not arrive within {self._seconds:g} s"
        return HTTPException(408, message, {"Connection": "close"})


class Observe:
    """Gives each request its `X-Request-Id` and the headers that protect browsers, and tells how it ended.

    A client's own `X-Request-Id` of 1 to 64 letters, digits, dots, dashes or underscores is kept. What routes
    put into `scope["state"]["facts"]` is logged with the request; `outcome` there is the status that a
    stream, which begins with 200, ended with.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracer: Tracer) -> None:
        self._app = app
        self._metrics = metrics
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        started = time.monotonic()
        state |= {"request_id": _request_id(scope), "facts": {}, "arrived": started}
        status, sent = 500, 0

        async def answer(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "websocket.accept":
                status = 101
            elif message["type"] == "websocket.close" and status != 101:
                status = 403
            elif message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = state["request_id"]
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            sent += len(message.get("body", b""))
            await send(message)

        with self._tracer.request(scope) as span:
            try:
                await self._app(scope, receive, answer)
            finally:
                status = state["facts"].pop("outcome", status)
                self._finish(scope, status, time.monotonic() - started, sent)
                span.finish(status, state["facts"])

    def _finish(self, scope: Scope, status: int, seconds: float, sent: int) -> None:
        state = scope["state"]
        asks_pictures = scope.get("method") == "POST" and scope["path"] in PICTURE_PATHS
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


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
