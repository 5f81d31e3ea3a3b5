"""A mixed load by the clients that people use: every way to ask for a picture, with their retries."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import httpx2

from twinshot import AsyncClient, Done, Failed, Frame, TwinshotError

_TRIES = 3
"""How often the owner of a stream or a session asks: the client leaves it to them when one is cut."""
_PAUSE = 1.0
"""Seconds, on average, that a user looks at a picture."""
_PROMPTS = ("a red car", "a blue tree in the snow", "a green dog on a beach", "a white chair at night")


class LostError(Exception):
    """A picture did not come."""


@dataclass
class Tally:
    """What became of a load: `answers` counts single HTTP answers by status, 0 being none."""

    asked: Counter[str] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    """Streams and sessions that broke off, and were asked for again."""
    lost: list[str] = field(default_factory=list)
    """What failed in the end, in words."""
    seconds: list[float] = field(default_factory=list)

    @property
    def failed_tries(self) -> int:
        """HTTP requests without a success, most of which a retry made good."""
        return sum(count for status, count in self.answers.items() if not 100 < status < 300)


class Counting(httpx2.AsyncBaseTransport):
    """Counts answers on their way to a client."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
        self._inner = httpx2.AsyncHTTPTransport(limits=limits)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Pass it on."""
        try:
            response = await self._inner.handle_async_request(request)
        except httpx2.TransportError:
            self._tally.answers[0] += 1
            raise
        self._tally.answers[response.status_code] += 1
        return response

    async def aclose(self) -> None:
        """Close what was opened."""
        await self._inner.aclose()


Ask = Callable[[AsyncClient, str, int], Awaitable[None]]


async def ask_for_file(client: AsyncClient, prompt: str, seed: int) -> None:
    """One picture, as PNG, JPEG or WebP."""
    await client.generate(prompt, seed=seed, format=("png", "jpeg", "webp")[seed % 3])


async def ask_for_several(client: AsyncClient, prompt: str, seed: int) -> None:
    """Two pictures in requests of their own."""
    await client.generate_many([prompt] * 2, seed=seed, format="jpeg")


async def ask_for_events(client: AsyncClient, prompt: str, seed: int) -> None:
    """Two pictures, told by server-sent events."""
    async for event in client.stream(prompt, n=2, seed=seed, format="jpeg"):
        if isinstance(event, Done):
            return
    raise LostError("the stream ended early")


async def ask_while_typing(client: AsyncClient, prompt: str, seed: int) -> None:
    """A session on a WebSocket; the picture of its last request must come."""
    async with client.realtime() as session:
        for end in range(len(prompt) - 2, len(prompt) + 1):
            newest = await session.send(prompt[:end], seed=seed)
            await asyncio.sleep(0.05)
        async for event in session:
            if isinstance(event, Failed) and event.id == newest:
                raise event.error
            if isinstance(event, Frame) and event.id == newest:
                return
    raise LostError("the session ended early")


Ways = Mapping[str, tuple[Ask, int]]
"""By name: how to ask, and how often its owner does."""

WAYS: Ways = {
    "file": (ask_for_file, 1),
    "several": (ask_for_several, 1),
    "events": (ask_for_events, _TRIES),
    "realtime": (ask_while_typing, _TRIES),
}


async def apply_mixed_load(
    url: str, users: int, stop: Callable[[float], bool], more: Ways | None = None
) -> Tally:
    """So many users, who each ask in all `WAYS`, and `more`, by chance, until `stop` says so.

    `stop` is told the seconds since the start. Users look at what they got for a second or so, and ask for no
    more while they wait: a machine that is slow, as others use it too, gets no more load than it can bear.
    """
    tally, started = Tally(), time.monotonic()
    ways = [*WAYS.items(), *(more or {}).items()]

    async def use(user: int) -> None:
        chance = random.Random(user)
        for number in itertools.count(user, users):
            await asyncio.sleep(chance.expovariate(1 / _PAUSE))
            if stop(time.monotonic() - started):
                return
            way, (ask, tries) = ways[chance.randrange(len(ways))]
            tally.asked[way] += 1
            await _ask(client, number, way, ask, tries, tally)

    async with AsyncClient(url, timeout=60, transport=Counting(tally)) as client:
        await asyncio.gather(*(use(user) for user in range(users)))
    return tally


async def _ask(client: AsyncClient, number: int, way: str, ask: Ask, tries: int, tally: Tally) -> None:
    started = time.monotonic()
    for left in reversed(range(tries)):
        try:
            await ask(client, _PROMPTS[number % len(_PROMPTS)], number)
        except (TwinshotError, LostError) as error:
            if not left:
                tally.lost.append(f"{way}: {type(error).__name__}: {error}")
                return
            tally.cut[way] += 1
            await asyncio.sleep(0.5)
        else:
            tally.seconds.append(time.monotonic() - started)
            return
