"""The dispatcher: accepts jobs, gives them to engines as these become free, and has the pixels encoded.

Everything here happens on the event loop. Work that nobody wants any more is dropped at three gates: leaving
the queue, in the engine before it draws, and before the image file is made.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Sequence
from dataclasses import replace

from twinshot_engine.types import EngineInfo, StageTimes
from twinshot_server.metrics import Metrics
from twinshot_server.processes.arena import Arena
from twinshot_server.processes.children import Spawn
from twinshot_server.processes.messages import Cost, Finished
from twinshot_server.scheduling.admission import Forecast, admit
from twinshot_server.scheduling.batch import Batch
from twinshot_server.scheduling.costs import CostTable
from twinshot_server.scheduling.encoder_link import EncoderLink
from twinshot_server.scheduling.engine_link import EngineLink
from twinshot_server.scheduling.fair_queue import FairQueue
from twinshot_server.scheduling.jobs import DeadlineError, FailedError, Job, Picture, StoppingError
from twinshot_server.scheduling.pool import EnginePool
from twinshot_server.settings import Settings

_LEAD = 0.005
"""Seconds before an engine should be free at which it gets its next batch, so that it never waits for us."""


class Dispatcher:
    """Shares jobs out among engines. `engines` are ways to start them; `encoder` starts the encoder."""

    def __init__(
        self, settings: Settings, arena: Arena, engines: Sequence[Spawn], encoder: Spawn, metrics: Metrics
    ) -> None:
        self.ready: concurrent.futures.Future[EngineInfo] = concurrent.futures.Future()
        """Resolves once the first engine is warm, or holds what went wrong; safe from any thread."""
        self.costs = CostTable()
        self.closing = False
        """Whether new jobs are refused because the server stops."""
        self.engines = EnginePool(settings, engines, self)
        self.encoder = EncoderLink(encoder)
        self._arena = arena
        self._capacity = settings.max_queue
        self._queue = FairQueue(self.costs, settings.largest_batch)
        self._largest = settings.largest_batch
        self._slots = list(range(arena.slots))
        self._metrics = metrics
        self._encoding: set[asyncio.Task[None]] = set()
        self._accepted: set[asyncio.Future[Picture]] = set()
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def alive(self) -> bool:
        """Whether no engine hangs or is gone for good, and images can be encoded."""
        return self.encoder.alive and self.engines.healthy

    @property
    def waiting(self) -> int:
        """How many jobs wait for an engine."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """How many jobs are being drawn or encoded."""
        return self.engines.running + len(self._encoding)

    @property
    def predicted_wait(self) -> float:
        """Seconds until an engine would begin with a job that came now, behind all that waits."""
        now = time.monotonic()
        free = self.engines.free_at(now)
        return max(0.0, min(free, default=now) - now, Forecast(self._queue, free, self.costs, now).end - now)

    def start(self) -> None:
        """Begin to load the engines, on the running event loop."""
        self.encoder.start()
        self.engines.start()

    async def stop(self) -> None:
        """End everything; jobs that are not done fail with StoppingError."""
        self.closing = True
        self._fail_waiting(StoppingError("The server stopped."))
        await self.engines.stop()
        self._fail_waiting(StoppingError("The server stopped."))  # what engines had not begun with
        if self._encoding:
            await asyncio.wait(self._encoding, timeout=5)
        await self.encoder.stop()
        await asyncio.gather(*self._encoding, return_exceptions=True)
        self._arena.close()
        if not self.ready.done():
            self.ready.set_exception(StoppingError("The server stopped."))

    def _fail_waiting(self, error: Exception) -> None:
        for job in self._queue.clear():
            job.fail(error)

    async def finish(self) -> None:
        """Refuse new jobs and wait until those that were accepted are done."""
        self.closing = True
        await asyncio.gather(*self._accepted, return_exceptions=True)

    def submit(self, jobs: Sequence[Job]) -> float:
        """Accept all of `jobs` or none; the predicted seconds until the last is done.

        Raises RefusedError, NotReadyError, or StoppingError.
        """
        now = time.monotonic()
        if self.closing:
            raise StoppingError("The server is stopping.")
        if not self.engines.available:
            raise self.engines.not_ready()
        forecast = admit(jobs, self._queue, self._capacity, self.engines.free_at(now), self.costs, now)
        for job in jobs:
            job.foretold = forecast.finish[job.number]
            self._queue.push(job)
            self._watch(job, now)
        self._pump()
        return max(forecast.finish[job.number] for job in jobs) - now

    def _watch(self, job: Job, now: float) -> None:
        alarm = asyncio.get_running_loop().call_later(max(0.0, job.deadline - now), self._expire, job)

        def ended(_done: asyncio.Future[Picture]) -> None:
            alarm.cancel()
            self._accepted.discard(job.done)
            self._drop(job)

        self._accepted.add(job.done)
        job.done.add_done_callback(ended)

    def _expire(self, job: Job) -> None:
        self.costs.error.learn(max(0.0, time.monotonic() - job.foretold))
        job.fail(DeadlineError("The deadline passed before the picture was done."))

    def _drop(self, job: Job) -> None:
        """A job ended; if that was early, take it out wherever it is."""
        if self._queue.remove(job):
            self._metrics.count_dropped("queue")
            return
        for engine in self.engines:
            engine.forget(job)

    def _pump(self) -> None:
        """Give work to every engine that is free, or is about to be."""
        now = time.monotonic()
        while (
            self.waiting
            and len(self._slots) >= self._largest
            and (free := [engine for engine in self.engines.available if _wants_work(engine, now)])
        ):
            jobs = [job for job in self._queue.pop() if not job.done.done()]
            if jobs:
                self._give(min(free, key=lambda engine: engine.free_at(now)), jobs)
        self._set_alarm(now)

    def _give(self, engine: EngineLink, jobs: Sequence[Job]) -> None:
        expected = self.costs.seconds(jobs[0].size, jobs[0].request.passes, len(jobs))
        engine.draw([(job, self._slots.pop()) for job in jobs], expected)
        for job in jobs:
            if not job.started.done():  # it may have been given to an engine that ended
                job.started.set_result(None)

    def _set_alarm(self, now: float) -> None:
        """Pump again when the next engine is about to be free."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        busy = [engine.free_at(now) - now for engine in self.engines.available if len(engine.batches) == 1]
        if busy and self.waiting and len(self._slots) >= self._largest:
            delay = max(0.0, min(busy) - _LEAD)
            self._alarm = asyncio.get_running_loop().call_later(delay, self._pump)

    def engine_ready(self, engine: EngineLink, costs: Sequence[Cost]) -> None:
        """It is loaded and warm."""
        assert engine.info is not None  # noqa: S101 - it has just said so
        self.costs.install(costs)
        self._metrics.note_start(engine.start_seconds)
        if not self.ready.done():
            self._metrics.describe_engine(engine.info)
            self.ready.set_result(engine.info)
        self._pump()

    def engine_drew(self, job: Job, slot: int, times: StageTimes, together: int) -> None:
        """A job's pixels are in its slot: make a file of them, if it is still wanted."""
        if job.done.done():
            self._metrics.count_dropped("encode")
            self._release(slot)
            return
        task = asyncio.get_running_loop().create_task(self._encode(job, slot, times, together))
        self._encoding.add(task)
        task.add_done_callback(self._encoding.discard)

    def engine_dropped(self, job: Job, slot: int, error: Exception | None) -> None:
        """A job was not drawn."""
        if error is None:
            self._metrics.count_dropped("draw")
        else:
            job.fail(error)
        self._release(slot)

    def engine_returned(self, job: Job, slot: int) -> None:
        """An engine ended before it began with a job, which waits again: first of its flow."""
        if not job.done.done():
            self._queue.put_back(job)
        self._slots.append(slot)

    def engine_finished(self, batch: Batch, finished: Finished) -> None:
        """An engine is done with a batch, and free if it has no other."""
        self._metrics.count_lookups(*finished.lookups)
        if finished.drawn:
            self._metrics.count_batch(finished.drawn)
        if finished.drawn == batch.images:
            self.costs.learn(batch.size, batch.passes, batch.images, time.monotonic() - batch.started)
        self._pump()

    def engine_lost(self, reason: str) -> None:
        """An engine ended; the others go on, and what waits waits."""
        self._metrics.count_restart("hang" if reason == "hung" else "exit")
        self._pump()

    def engine_gave_up(self) -> None:
        """An engine will not come back; if it was the last, nothing that waits will be drawn."""
        failure = self.engines.failure
        if failure is None:
            return
        self._fail_waiting(FailedError("No engine is left."))
        if not self.ready.done():
            self.ready.set_exception(failure)

    async def _encode(self, job: Job, slot: int, times: StageTimes, together: int) -> None:
        """From pixels to the file; runs to its end, because the encoder holds the slot until then."""
        drawn = time.monotonic()
        waited = max(0.0, drawn - job.arrived - times.text - times.denoise - times.decode)
        try:
            encoded = await self.encoder.encode(job, slot)
            assert encoded.length is not None  # noqa: S101 - `encode` raises then
            content = self._arena.read_file(slot, encoded.length)
        except FailedError as error:
            job.fail(error)
        else:
            finished = time.monotonic() - drawn
            self.costs.after.learn(finished)
            self.costs.error.learn(time.monotonic() - job.foretold)
            if not job.done.done():
                whole = replace(times, queue=waited, encode=finished)
                self._metrics.count_image(job.size, whole)
                job.done.set_result(Picture(content, whole, together))
        finally:
            self._release(slot)

    def _release(self, slot: int) -> None:
        self._slots.append(slot)
        if self.waiting:
            self._pump()


def _wants_work(engine: EngineLink, now: float) -> bool:
    if not engine.batches:
        return True
    return len(engine.batches) == 1 and engine.free_at(now) - now <= _LEAD
