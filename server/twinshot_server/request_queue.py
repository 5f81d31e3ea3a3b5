"""A bounded queue that hands out whole batches: waiting requests that can share one forward pass."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from twinshot_engine.types import GenerateRequest, StageTimes


class QueueFullError(Exception):
    """The queue holds as many requests as it may."""


class QueueClosedError(Exception):
    """The queue takes no more requests, because the server stops."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One request's picture.

    `pixels` is uint8 RGB [height, width, 3]; `batch_size` is how many requests shared the forward pass.
    """

    pixels: NDArray[np.uint8]
    times: StageTimes
    batch_size: int


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A request that waits; cancelling `result` takes it out of the queue."""

    request: GenerateRequest
    result: Future[Drawn] = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)

    @property
    def batch_key(self) -> tuple[int, int, int]:
        """Requests with equal keys can share one forward pass."""
        return self.request.width, self.request.height, self.request.steps


class RequestQueue:
    """First come, first served: the oldest job leads a batch, and younger ones of its kind join it.

    Safe to use from any thread. Holds at most `capacity` jobs; cancelled ones do not count.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        """How many jobs wait and are still wanted."""
        with self._changed:
            return sum(not job.result.cancelled() for job in self._jobs)

    def put(self, job: Job) -> None:
        """Add a job. Raises QueueFullError or QueueClosedError."""
        with self._changed:
            if self._closed:
                raise QueueClosedError
            self._drop_cancelled()
            if len(self._jobs) >= self._capacity:
                raise QueueFullError
            self._jobs.append(job)
            self._changed.notify()

    def take(self, limit: int) -> list[Job]:
        """Wait for work, then take up to `limit` jobs of one kind; empty once the queue is closed.

        The jobs' futures are set running, so nobody can cancel them any more.
        """
        with self._changed:
            while not self._closed:
                batch = self._pop_batch(limit)
                if batch:
                    return batch
                self._changed.wait()
            return []

    def close(self) -> None:
        """Refuse new jobs, cancel those that wait, and wake up `take`."""
        with self._changed:
            self._closed = True
            while self._jobs:
                self._jobs.popleft().result.cancel()
            self._changed.notify_all()

    def _drop_cancelled(self) -> None:
        self._jobs = deque(job for job in self._jobs if not job.result.cancelled())

    def _pop_batch(self, limit: int) -> list[Job]:
        self._drop_cancelled()
        batch: list[Job] = []
        left: deque[Job] = deque()
        for job in self._jobs:
            joins = len(batch) < limit and (not batch or job.batch_key == batch[0].batch_key)
            if not joins:
                left.append(job)
            elif job.result.set_running_or_notify_cancel():
                batch.append(job)
        self._jobs = left
        return batch
