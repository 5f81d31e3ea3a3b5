"""Keeps one child running: starts it, hears it, and starts it again when it ends, within bounds."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any, Protocol

import structlog

from twinshot_server.processes.channel import Channel, ForeignMessageError
from twinshot_server.processes.children import Child, Spawn

_log = structlog.stdlib.get_logger("twinshot")

RESTART_WINDOW = 600.0
"""Seconds within which `restarts` are counted."""
SOON = 5.0
"""Seconds after its start within which a child that ends is restarted ever more slowly."""


class Listener(Protocol):
    """Who works with the child; every method is called on the event loop."""

    def opened(self) -> None:
        """A child was started and can be sent messages."""
        ...

    def received(self, message: Any) -> bool:
        """A message came; True if the child is not worth starting again."""
        ...

    def lost(self, reason: str) -> None:
        """The child ended; another may follow."""
        ...

    def gave_up(self) -> None:
        """No child will follow."""
        ...


class Supervisor:
    """Runs children of one kind, one at a time, until it is stopped or they end too often.

    More than `restarts` restarts within RESTART_WINDOW seconds, or a child that says that it is not worth it,
    end the supervision.
    """

    def __init__(self, name: str, spawn: Spawn, listener: Listener, restarts: int) -> None:
        self._name = name
        self._spawn = spawn
        self._listener = listener
        self._restarts = restarts
        self._recent: list[float] = []
        self._started = 0.0
        self._child: Child | None = None
        self._channel: Channel | None = None
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    @property
    def child(self) -> Child | None:
        """The child that runs, if one does."""
        return self._child

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._supervise(), name=self._name)

    def send(self, message: object) -> None:
        """Send to the child; lost if there is none, which `Listener.lost` tells."""
        if self._channel is not None:
            self._channel.send(message)

    def kill(self) -> None:
        """End the child at once; another follows."""
        if self._child is not None:
            self._child.kill()

    async def stop(self, patience: float = 5.0) -> None:
        """Hang up, which ends the child, and wait for it; one that takes longer than `patience` is killed."""
        self._stopping = True
        if self._task is None:
            return
        if self._channel is not None:
            self._channel.close()
            await asyncio.wait({self._task}, timeout=patience + 5)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _supervise(self) -> None:
        while not await self._run_once():
            self._recent = [moment for moment in self._recent if time.monotonic() - moment < RESTART_WINDOW]
            if self._stopping or len(self._recent) >= self._restarts:
                break
            # What fails soon after its start must not eat the machine; what served well is back at once.
            failed_early = time.monotonic() - self._started < SOON
            await asyncio.sleep(2.0 ** len(self._recent) - 1 if failed_early else 0.0)
            self._recent.append(time.monotonic())
        if not self._stopping:
            _log.error("gave up", child=self._name, restarts=len(self._recent))
            self._listener.gave_up()

    async def _run_once(self) -> bool:
        """Run a child to its end; True if another makes no sense."""
        self._started = time.monotonic()
        child = self._child = await asyncio.to_thread(self._spawn)
        channel = self._channel = await Channel.open(child.stream)
        self._listener.opened()
        hopeless = False
        with _until_the_end(self._name):
            while True:
                hopeless = self._listener.received(await channel.receive()) or hopeless
        self._channel = None
        channel.close()
        reason = await asyncio.to_thread(child.wait, 2.0)
        self._child = None
        if not self._stopping:
            _log.log(20 if hopeless else 40, "child ended", child=self._name, reason=reason)
        self._listener.lost(reason)
        return hopeless


@contextlib.contextmanager
def _until_the_end(name: str) -> Iterator[None]:
    """Goes on after the other end hung up, or said what it must not."""
    try:
        yield
    except ForeignMessageError as error:
        _log.error("child is not to be trusted", child=name, reason=str(error))
    except EOFError:
        pass
