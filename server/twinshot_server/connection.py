"""One HTTP connection as uvicorn has it, but without patience for clients that never finish their headers."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_BYTES = 65_536
"""How many bytes a request's headers may have."""


class Connection(HttpToolsProtocol):
    """Closes a connection whose headers are too slow or too long; bodies are `LimitBody`'s."""

    patience = 10.0
    """Seconds from connecting, or from a request's first byte, to the end of its headers."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._alarm: asyncio.TimerHandle | None = None
        self._header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        """Take in what came."""
        if self._alarm is not None:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._alarm is not None and self._header_bytes > HEADER_BYTES:
            self.send_400_response("The headers are too long.")

    def on_message_begin(self) -> None:
        """A request's first byte came."""
        super().on_message_begin()
        if self._alarm is None:
            self._wait_for_headers()

    def on_headers_complete(self) -> None:
        """A request's headers are complete."""
        self._stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._stop_waiting()
        super().connection_lost(exc)

    @classmethod
    def with_patience(cls, seconds: float) -> type[Connection]:
        """The same class with another patience; uvicorn makes the objects itself."""
        return type("Connection", (cls,), {"patience": seconds})

    def _wait_for_headers(self) -> None:
        self._header_bytes = 0
        self._alarm = self.loop.call_later(self.patience, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
