"""Server-sent events: their form, and an answer made of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pybase64
from fastapi.responses import StreamingResponse

from twinshot_server.negotiation import EVENTS


def event(name: str, data: bytes) -> bytes:
    """One event with JSON as its data, which has no line breaks."""
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


def with_base64(field: str, content: bytes, rest: bytes) -> bytes:
    """The JSON object `rest` with one more field, past the slow encoder: base64 needs no escaping."""
    return b'{"' + field.encode() + b'":"' + pybase64.b64encode(content) + b'",' + rest[1:]


class EventStream(StreamingResponse):
    """Events as they come; no proxy on the way should hold them back."""

    def __init__(self, events: AsyncIterator[bytes], headers: dict[str, str] | None = None) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})}
        super().__init__(events, headers=headers, media_type=EVENTS)
