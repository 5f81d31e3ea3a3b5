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
        self.draining = False
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._drain_seconds = drain_seconds
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to watch the event loop, which must be running."""
        self._keep(self._watch_loop())

    async def stop(self) -> None:
        """End what was started."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def drain(self) -> None:
        """Be unready, serve on for the drain time, then finish what was accepted and refuse the rest."""
        self.draining = True
        _log.info("draining", seconds=self._drain_seconds)
        await asyncio.sleep(self._drain_seconds)
        await self._dispatcher.finish()

    def begin_drain(self) -> None:
        """Drain in the background; does nothing while that goes on."""
        if not self.draining:
            self._keep(self.drain())

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch_loop(self) -> None:
        """How late a sleep ends is how long the loop was kept from everything else."""
        while True:
            due = time.monotonic() + _TICK
            await asyncio.sleep(_TICK)
            self._metrics.note_lag(max(0.0, time.monotonic() - due))
