"""The middleware that knows callers: it asks for keys, counts against their limits, and names them."""

from __future__ import annotations

import base64
import binascii
from contextlib import nullcontext
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from twinshot_server.access.keys import Caller, KeyRing
from twinshot_server.access.paths import ADMIN, PICTURES, is_open, route_path
from twinshot_server.errors import ApiError, error_response

KEY_PROTOCOL = "twinshot.key."
"""Browsers cannot set headers of a WebSocket; this and the key in base64url can be a subprotocol."""


class Guard:
    """Lets through who may pass; `scope["state"]["caller"]` names the caller.

    A key comes as `Authorization: Bearer <key>` or `X-API-Key: <key>`. Calls under `/admin` need a key
    that is marked for it.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing, origins: list[str]) -> None:
        self._app = app
        self._ring = ring
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        path = route_path(scope) if scope["type"] != "lifespan" else "/"
        if is_open(path):
            await self._app(scope, receive, send)
            return
        try:
            caller = scope["state"]["caller"] = self._identify(scope, path)
            with caller.limits.request() if path in PICTURES else nullcontext():
                await self._app(scope, receive, send)
        except ApiError as error:
            await _refuse(scope, receive, send, error)

    def _identify(self, scope: Scope, path: str) -> Caller:
        headers = Headers(scope=scope)
        if scope["type"] == "websocket":
            self._check_origin(headers)
        presented = _presented_key(headers)
        caller = self._ring.find(presented) if presented else None
        if path.startswith(ADMIN):
            return _require_admin(caller)
        if caller is not None:
            return caller
        if self._ring.is_open:
            return self._ring.anonymous
        message = "Send a valid API key as 'Authorization: Bearer <key>'."
        raise ApiError(401, "invalid_key", message, headers={"WWW-Authenticate": "Bearer"})

    def _check_origin(self, headers: Headers) -> None:
        """Pages of other sites must not open WebSockets here: browsers do not ask CORS about those."""
        origin = headers.get("origin")
        if origin is None or origin in self._origins or urlsplit(origin).netloc == headers.get("host"):
            return
        raise ApiError(403, "forbidden", f"Pages from {origin[:80]!r} may not connect; see --cors-origins.")


def _presented_key(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    if "x-api-key" in headers:
        return headers["x-api-key"]
    for protocol in headers.get("sec-websocket-protocol", "").split(","):
        if protocol.strip().startswith(KEY_PROTOCOL):
            return _decode(protocol.strip().removeprefix(KEY_PROTOCOL))
    return ""


def _decode(encoded: str) -> str:
    try:
        return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _require_admin(caller: Caller | None) -> Caller:
    if caller is None:
        message = "Calls under /admin need the admin key, as 'Authorization: Bearer <key>'."
        raise ApiError(401, "invalid_key", message, headers={"WWW-Authenticate": "Bearer"})
    if not caller.admin:
        raise ApiError(403, "forbidden", f"The key {caller.name!r} may draw, but not call /admin.")
    return caller


async def _refuse(scope: Scope, receive: Receive, send: Send, error: ApiError) -> None:
    if scope["type"] == "websocket":
        await receive()  # the request to connect
        await send({"type": "websocket.close", "code": 1008, "reason": error.message})
        return
    scope["state"]["facts"]["error"] = error.code
    await error_response(route_path(scope), scope["state"]["request_id"], error)(scope, receive, send)
