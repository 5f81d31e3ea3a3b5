"""The phases of a server's life after it is ready: serving, draining, closing; and how well its loop runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine

import structlog

from twinshot_server.metrics import Metrics
from twinshot_server.scheduling.dispatcher import Dispatcher

_log = structlog.stdlib.get_logger("twinshot")
_TICK = 0.02


class Lifecycle:
    """Draining: not ready any more, but still serving, until those who route requests have noticed.

    After that, closing: new requests are refused, accepted ones finished.
    """

    def __init__(self, dispatcher: Dispatcher, metrics: Metrics, drain_seconds: float) -> None:
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._drain_seconds = drain_seconds
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch the event loop, which must be running."""
        self._keep(self._watch_loop())

    async def stop(self) -> None:
        """End what was started."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def draining(self) -> bool:
        """Whether new requests should go elsewhere."""
        return self._draining is not None

    def drain(self) -> asyncio.Task[None]:
        """Be unready, serve on for the drain time, then refuse new requests and finish the accepted ones.

        The task ends when everything is done. It is the same task however often this is called.
        """
        if self._draining is None:
            _log.info("draining", seconds=self._drain_seconds)
            self._draining = self._keep(self._drain())
        return self._draining

    async def _drain(self) -> None:
        await asyncio.sleep(self._drain_seconds)
        await self._dispatcher.finish()

    def _keep(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _watch_loop(self) -> None:
        """How late a sleep ends is how long the loop was kept from everything else."""
        while True:
            due = time.monotonic() + _TICK
            await asyncio.sleep(_TICK)
            self._metrics.note_lag(max(0.0, time.monotonic() - due))
