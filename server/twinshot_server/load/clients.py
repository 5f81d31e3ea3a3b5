"""The clients: each sends its one request when its moment has come, whatever became of the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from twinshot_server.load.plan import Arrival, LoadPlan, Manner

PROMPTS = tuple(
    f"a {colour} {thing} {place}"
    for colour in ("red", "blue", "green", "yellow", "white")
    for thing in ("car", "tree", "dog", "chair")
    for place in ("on a beach", "in the snow", "at night")
)
_SLOW_PIECE, _SLOW_PAUSE = 16_384, 0.01


class UnreachableError(Exception):
    """There is no server at the address."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one client saw: `status` 0 is no answer, 499 that it left; `late` is how late it was sent."""

    arrival: Arrival
    status: int
    seconds: float
    received: int
    late: float


@dataclass(frozen=True, slots=True)
class Target:
    """The server under load: `extra` are fields that every request carries besides OpenAI's."""

    url: str
    key: str | None = None
    model: str | None = None
    image_format: str = "png"
    timeout: float = 60.0
    extra: dict[str, Any] = field(default_factory=dict)

    def body(self, arrival: Arrival) -> dict[str, Any]:
        """What is sent."""
        fields: dict[str, Any] = {
            "prompt": PROMPTS[arrival.number % len(PROMPTS)],
            "n": 1,
            "size": arrival.size,
            "response_format": "b64_json",
            **({"output_format": self.image_format} if self.image_format != "png" else {}),
            **({"model": self.model} if self.model else {}),
        }
        return fields | self.extra


async def apply_load(
    target: Target, plan: LoadPlan, progress: Callable[[int, int], None] = lambda _sent, _done: None
) -> list[Outcome]:
    """Every client's outcome. `progress` hears how many requests were sent and how many are done."""
    headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=200)
    tasks: list[asyncio.Task[Outcome]] = []
    done = 0

    def count(_task: object) -> None:
        nonlocal done
        done += 1
        progress(len(tasks), done)

    async with httpx2.AsyncClient(
        base_url=target.url, headers=headers, timeout=target.timeout, limits=limits
    ) as http:
        started = time.monotonic()
        for arrival in plan.arrivals():
            await asyncio.sleep(max(0.0, started + arrival.moment - time.monotonic()))
            task = asyncio.create_task(_serve(http, target, arrival, started + arrival.moment))
            task.add_done_callback(count)
            tasks.append(task)
        return list(await asyncio.gather(*tasks))


async def _serve(http: httpx2.AsyncClient, target: Target, arrival: Arrival, due: float) -> Outcome:
    """One client. Its time counts from when it should have been sent: a late sender hides nothing."""
    late = time.monotonic() - due
    status, received = 0, 0
    work = asyncio.ensure_future(_ask(http, target, arrival))
    try:
        patience = arrival.patience if arrival.manner is Manner.LEAVING else None
        status, received = await asyncio.wait_for(work, patience)
    except TimeoutError:
        status = 499
    except httpx2.TransportError:
        pass
    return Outcome(arrival, status, time.monotonic() - due, received, late)


async def _ask(http: httpx2.AsyncClient, target: Target, arrival: Arrival) -> tuple[int, int]:
    received = 0
    async with http.stream("POST", "/v1/images/generations", json=target.body(arrival)) as response:
        async for piece in response.aiter_raw(_SLOW_PIECE if arrival.manner is Manner.SLOW else None):
            received += len(piece)
            if arrival.manner is Manner.SLOW:
                await asyncio.sleep(_SLOW_PAUSE)
        return response.status_code, received


async def find_model(target: Target) -> dict[str, Any]:
    """The first model that the server offers; empty if it does not say. Raises UnreachableError."""
    headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
    async with httpx2.AsyncClient(base_url=target.url, headers=headers, timeout=10) as http:
        try:
            models: Sequence[dict[str, Any]] = (await http.get("/v1/models")).json()["data"]
            return dict(models[0])
        except (httpx2.TransportError, httpx2.UnsupportedProtocol) as error:
            raise UnreachableError(f"no answer from {target.url}: {str(error).rstrip('.')}") from None
        except (ValueError, LookupError, TypeError):  # it speaks of images only
            return {}
