"""The one thread that owns the engine: it loads the model, then draws batch after batch."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

from twinshot_server.engine_protocol import ImageEngine, Progress
from twinshot_server.request_queue import Drawn, Job, QueueClosedError, RequestQueue

if TYPE_CHECKING:
    from twinshot_engine.types import GeneratedBatch, GenerateRequest


class Dispatcher:
    """Takes requests from any thread and draws them in batches on its own.

    `ready` resolves to the engine once it is loaded and warm, or holds what went wrong.
    """

    def __init__(
        self,
        load: Callable[[Progress], ImageEngine],
        *,
        max_batch: int,
        max_queue: int,
        on_batch: Callable[[int], None] = lambda _size: None,
    ) -> None:
        self.ready: Future[ImageEngine] = Future()
        self.running = 0
        """How many requests are being drawn at this moment."""
        self._load = load
        self._max_batch = max_batch
        self._on_batch = on_batch
        self._queue = RequestQueue(max_queue)
        self._stopping = threading.Event()
        self._batch_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def waiting(self) -> int:
        """How many requests wait for the engine."""
        return len(self._queue)

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive()

    @property
    def engine(self) -> ImageEngine | None:
        """The engine, or None while it loads and after loading failed."""
        return self.ready.result() if self.ready.done() and self.failure is None else None

    @property
    def failure(self) -> BaseException | None:
        """What kept the engine from loading, if anything did."""
        return self.ready.exception() if self.ready.done() else None

    @property
    def retry_after(self) -> int:
        """Whole seconds after which the requests that wait now should be done."""
        batches = math.ceil(self.waiting / self._max_batch)
        return max(1, math.ceil(batches * self._batch_seconds))

    def start(self) -> None:
        """Begin to load the engine, in the background."""
        self._thread.start()

    def stop(self, patience: float = 5.0) -> None:
        """Finish the batch in progress and cancel what waits; waits `patience` seconds at most."""
        self._stopping.set()
        self._queue.close()
        self._thread.join(patience)

    def submit(self, request: GenerateRequest) -> Future[Drawn]:
        """Queue a validated request. Raises QueueFullError or QueueClosedError."""
        job = Job(request)
        self._queue.put(job)
        return job.result

    def _run(self) -> None:
        try:
            engine = self._load(self._check_stop)
            engine.warm()
        except Exception as error:  # noqa: BLE001 - kept for those who ask whether it is ready
            self._queue.close()
            self.ready.set_exception(error)
            return
        self.ready.set_result(engine)
        while batch := self._queue.take(self._max_batch):
            self._draw(engine, batch)

    def _check_stop(self, _stage: str, _fraction: float) -> None:
        """Loading reports here, which is where a stop during a long load takes effect."""
        if self._stopping.is_set():
            raise QueueClosedError

    def _draw(self, engine: ImageEngine, batch: list[Job]) -> None:
        started = time.monotonic()
        self.running = len(batch)
        try:
            drawn = engine.generate([job.request for job in batch])
        except Exception as error:  # noqa: BLE001 - raised again where the request was made
            for job in batch:
                job.result.set_exception(error)
        else:
            self._deliver(batch, drawn, started)
        finally:
            self.running = 0
            self._learn(time.monotonic() - started)
            self._on_batch(len(batch))

    @staticmethod
    def _deliver(batch: list[Job], drawn: GeneratedBatch, started: float) -> None:
        for job, pixels in zip(batch, drawn.images, strict=True):
            times = replace(drawn.times, queue=started - job.submitted)
            job.result.set_result(Drawn(pixels, times, len(batch)))

    def _learn(self, seconds: float) -> None:
        self._batch_seconds += 0.2 * (seconds - self._batch_seconds) if self._batch_seconds else seconds
