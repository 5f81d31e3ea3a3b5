"""One way to call both clients, so that each test of what they share runs on both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import httpx2

from twinshot import AsyncClient, Client

Handler = Callable[[httpx2.Request], httpx2.Response]


@dataclass(frozen=True)
class Asker:
    """Calls a method of a client of its kind; a stream's events come as a list."""

    kind: Literal["sync", "async"]
    seconds: float = 0
    """How long a handler takes."""

    def __call__(
        self, where: str | Handler, method: str, *arguments: Any, settings: Any = None, **options: Any
    ) -> Any:
        """`where` is an address, or a handler that answers instead of the network."""
        settings = {"base_url": where if isinstance(where, str) else "http://server", **(settings or {})}
        if callable(where):
            settings["transport"] = httpx2.MockTransport(self._slowed(where) if self.seconds else where)
        if self.kind == "sync":
            with Client(**settings) as client:
                result = getattr(client, method)(*arguments, **options)
                return list(result) if method == "stream" else result
        return asyncio.run(_ask(AsyncClient(**settings), method, arguments, options))

    def _slowed(self, handler: Handler) -> Any:
        async def wait_and_answer(request: httpx2.Request) -> httpx2.Response:
            await asyncio.sleep(self.seconds)
            return handler(request)

        def block_and_answer(request: httpx2.Request) -> httpx2.Response:
            time.sleep(self.seconds)
            return handler(request)

        return block_and_answer if self.kind == "sync" else wait_and_answer


async def _ask(client: AsyncClient, method: str, arguments: Any, options: Any) -> Any:
    async with client:
        result = getattr(client, method)(*arguments, **options)
        return [event async for event in result] if method == "stream" else await result
