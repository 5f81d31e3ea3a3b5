"""What the routes of one application share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from twinshot_server.dispatcher import Dispatcher
from twinshot_server.engine_protocol import ImageEngine
from twinshot_server.errors import ApiError
from twinshot_server.metrics import Metrics
from twinshot_server.request_queue import Drawn, QueueClosedError, QueueFullError
from twinshot_server.settings import Settings

if TYPE_CHECKING:
    from concurrent.futures import Future

    from twinshot_engine.types import GenerateRequest


@dataclass(frozen=True, slots=True)
class Service:
    """Settings, the engine's dispatcher and the metrics; lives as long as the application."""

    settings: Settings
    dispatcher: Dispatcher
    metrics: Metrics

    @property
    def engine(self) -> ImageEngine:
        """The loaded engine. Raises ApiError 503 while there is none."""
        engine = self.dispatcher.engine
        if engine is None:
            reason = (
                "could not be loaded; /health says why" if self.dispatcher.failure else "is still loading"
            )
            raise ApiError(503, "not_ready", f"The model {reason}.", headers={"Retry-After": "1"})
        return engine

    def submit(self, request: GenerateRequest) -> Future[Drawn]:
        """Queue a request. Raises ApiError 429 if the queue is full, 503 if the server stops."""
        try:
            return self.dispatcher.submit(request)
        except QueueFullError:
            wait = self.dispatcher.retry_after
            message = f"{self.settings.max_queue} requests wait already; try again in {wait} s."
            raise ApiError(429, "queue_full", message, headers={"Retry-After": str(wait)}) from None
        except QueueClosedError:
            raise ApiError(
                503, "not_ready", "The server is stopping.", headers={"Retry-After": "1"}
            ) from None


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]
"""Annotates a route's parameter that receives the application's service."""
