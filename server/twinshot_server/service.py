"""What the routes of one application share."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from twinshot_engine.types import EngineInfo, GenerateRequest
from twinshot_server.access.keys import Caller
from twinshot_server.errors import ApiError
from twinshot_server.images import ImageFormat
from twinshot_server.lexicon import Lexicons
from twinshot_server.lifecycle import Lifecycle
from twinshot_server.metrics import Metrics
from twinshot_server.orders import Order
from twinshot_server.scheduling.dispatcher import Dispatcher
from twinshot_server.scheduling.jobs import Job, Priority
from twinshot_server.settings import Settings

T = TypeVar("T")

_SENDING = 0.005
"""Seconds of a request's time that are kept for reading it and for sending the answer."""


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms pictures are drawn: in which form, how urgently, for whom."""

    image_format: ImageFormat
    quality: int | None
    priority: Priority
    deadline_ms: int | None
    caller: str
    arrived: float
    """The moment the request came, of `time.monotonic()`."""


@dataclass(frozen=True, slots=True)
class Service:
    """Settings, the dispatcher, metrics and the life's phase; lives as long as the application."""

    settings: Settings
    dispatcher: Dispatcher
    metrics: Metrics
    lifecycle: Lifecycle
    lexicons: Lexicons = field(default_factory=Lexicons)

    @property
    def info(self) -> EngineInfo:
        """What is loaded. Raises NotReadyError while nothing is."""
        info = self.dispatcher.engines.info
        if info is None:
            raise self.dispatcher.engines.not_ready()
        return info

    async def accept(self, requests: Sequence[GenerateRequest], terms: Terms) -> Order:
        """Queue requests that differ by their seeds alone, with what is nearest for words not known.

        Raises InvalidRequestError, RefusedError, NotReadyError or StoppingError; then none was queued.
        """
        if len(requests) > self.settings.max_images:
            message = f"n: at most {self.settings.max_images} pictures at a time, not {len(requests)}."
            raise ApiError(422, "invalid_request", message, param="n")
        reading = self.lexicons.read(self.info, requests[0].prompt)
        requests = [replace(request, prompt=reading.prompt) for request in requests]
        await self.dispatcher.engines.validate(requests[0])
        allowed = (terms.deadline_ms or self.settings.deadline_ms) / 1000
        deadline = terms.arrived + allowed - min(_SENDING, allowed / 2)
        jobs = [
            Job(
                request,
                terms.image_format,
                terms.quality,
                terms.priority,
                deadline,
                terms.caller,
                terms.arrived,
            )
            for request in requests
        ]
        return Order(jobs, self.dispatcher.submit(jobs), reading)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client goes away first.

    A blocking `receive` hears of that behind any middleware; `request.is_disconnected()` does not.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "cancelled", "The client went away before its picture was ready.")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# Coroutines, because FastAPI sends plain functions through a thread, which costs more than they do.
async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


ServiceOf = Annotated[Service, Depends(_service)]
"""Annotates a route's parameter that receives the application's service."""

CallerOf = Annotated[Caller, Depends(_caller)]
"""Annotates a route's parameter that receives who calls."""
