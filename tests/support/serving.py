"""What tests of the server share besides fixtures."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi.testclient import TestClient

from twinshot_engine.types import GenerateRequest
from twinshot_server.images import ImageFormat
from twinshot_server.scheduling.dispatcher import Dispatcher
from twinshot_server.scheduling.jobs import Job, Priority


def dispatcher_of(client: TestClient) -> Dispatcher:
    """The dispatcher behind a client; counts may be read from any thread, the rest belongs to its loop."""
    dispatcher: Dispatcher = client.app.state.service.dispatcher  # type: ignore[attr-defined]
    return dispatcher


def make_job(seed: int = 0, size: tuple[int, int] = (64, 32), **options: Any) -> Job:
    """A job for the fake engine, on the running loop, with a deadline far away unless told otherwise."""
    steps, adapter = options.pop("steps", 1), options.pop("adapter", None)
    guidance = options.pop("guidance", 1.0)
    request = GenerateRequest("a red car", seed, *size, steps, adapter, guidance)
    defaults = {
        "image_format": ImageFormat.PNG,
        "quality": None,
        "priority": Priority.INTERACTIVE,
        "deadline": time.monotonic() + 60,
    }
    return Job(request, **defaults | options)


def until(condition: Callable[[], bool]) -> None:
    """Wait, from outside of the loop, until something is so."""
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit, "it never came to be"
        time.sleep(0.002)
