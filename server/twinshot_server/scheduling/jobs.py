"""One image on its way: what was asked, by when, and what became of it."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from twinshot_engine.types import GenerateRequest, Size, StageTimes
from twinshot_server.images import ImageFormat


class Kind(NamedTuple):
    """What decides whether jobs can share a forward pass, and what one costs."""

    size: Size
    steps: int
    adapter: str | None
    guidance: float
    passes: int
    """How often the transformer runs."""


_numbers = itertools.count(1)


class Priority(StrEnum):
    """Interactive goes first; batch takes what is left, and never nothing."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished image file; `together` images shared its forward pass."""

    content: bytes
    times: StageTimes
    together: int


class DeadlineError(Exception):
    """A job was accepted, but could not be done by its deadline."""


class FailedError(Exception):
    """An engine or the encoder failed on a job."""


class StoppingError(Exception):
    """The server stopped before the job was done."""


@dataclass(slots=True, eq=False)
class Job:
    """An image to draw and encode.

    `deadline` and `arrived` are of `time.monotonic()`. `done` holds the picture or why there is none;
    cancelling it drops the job wherever it is. `started` resolves when an engine gets the job.
    """

    request: GenerateRequest
    image_format: ImageFormat
    quality: int | None
    priority: Priority
    deadline: float
    caller: str = "anonymous"
    arrived: float = field(default_factory=time.monotonic)
    foretold: float = math.inf
    """The moment at which it should be done, as it was foretold when it was accepted."""
    number: int = field(default_factory=lambda: next(_numbers))
    done: asyncio.Future[Picture] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    started: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.request.width, self.request.height

    @property
    def kind(self) -> Kind:
        """What decides whether jobs can share a forward pass."""
        asked = self.request
        return Kind(self.size, asked.steps, asked.adapter, asked.guidance, asked.passes)

    def fail(self, error: Exception) -> None:
        """End the job with an error, unless it has ended already."""
        if not self.done.done():
            self.done.set_exception(error)
            # A job of several in one request may fail after the answer is decided; nobody asks then.
            self.done.exception()
