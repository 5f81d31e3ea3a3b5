"""Around every request: an id, a size limit, a log line, and the counting of requests for pictures."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twinshot_server.metrics import Metrics

_log = structlog.stdlib.get_logger("twinshot")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
GENERATE_PATH = "/generate"


class LimitBody:
    """Refuses bodies of more than `limit` bytes with a 413, before they are in memory."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = int(Headers(scope=scope).get("content-length", "0"))
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive() if declared <= self._limit else {"type": "http.disconnect"}
            received += len(message.get("body", b""))
            if max(declared, received) > self._limit:
                raise HTTPException(413, f"the body is larger than the {self._limit} bytes that are accepted")
            return message

        await self._app(scope, limited, send)


class Observe:
    """Gives each request its `X-Request-Id`, logs it once it ended, and counts it if it asked for a picture.

    A client's own `X-Request-Id` of 1 to 64 letters, digits, dots, dashes or underscores is kept.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        request.state.request_id = _request_id(request)
        request.state.facts = {}
        started = time.monotonic()
        status = 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request.state.request_id
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            self._finish(request, status, time.monotonic() - started)

    def _finish(self, request: Request, status: int, seconds: float) -> None:
        is_generate = request.method == "POST" and request.url.path == GENERATE_PATH
        if is_generate:
            self._metrics.count_request(status, seconds)
        facts = {
            "request_id": request.state.request_id,
            "method": request.method,
            "path": request.scope["raw_path"].decode(
                "ascii", "backslashreplace"
            ),  # encoded: no control characters
            "status": status,
            "ms": round(seconds * 1000, 2),
            **request.state.facts,
        }
        write = _log.info if is_generate else _log.debug
        write("request", **facts)


def _request_id(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
