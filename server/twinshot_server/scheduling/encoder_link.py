"""The encoder process as the dispatcher sees it."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from twinshot_server.processes.children import Spawn
from twinshot_server.processes.messages import Encode, Encoded
from twinshot_server.processes.supervisor import Supervisor
from twinshot_server.scheduling.jobs import FailedError, Job

_calls = itertools.count(1)
_RESTARTS = 20


class EncoderLink:
    """Sends pixels to the encoder and waits for files; what a dying encoder had in work is sent once more."""

    def __init__(self, spawn: Spawn) -> None:
        self.alive = True
        self._supervisor = Supervisor("encoder", spawn, self, _RESTARTS)
        self._orders: dict[int, Encode] = {}
        self._answers: dict[int, asyncio.Future[Encoded]] = {}
        self._suspects: set[int] = set()

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._supervisor.start()

    async def stop(self) -> None:
        """End the encoder; what it has in work fails."""
        await self._supervisor.stop()
        self.gave_up()

    @property
    def child(self) -> Any:
        """The running process or thread, if there is one."""
        return self._supervisor.child

    async def encode(self, job: Job, slot: int) -> Encoded:
        """Have the pixels in `slot` replaced by a file. Raises FailedError."""
        order = Encode(next(_calls), slot, job.size, job.image_format, job.quality)
        answer: asyncio.Future[Encoded] = asyncio.get_running_loop().create_future()
        self._orders[order.call], self._answers[order.call] = order, answer
        self._supervisor.send(order)
        try:
            encoded = await answer
        finally:
            del self._orders[order.call], self._answers[order.call]
            self._suspects.discard(order.call)
        if encoded.length is None:
            raise FailedError("The image file could not be made.")
        return encoded

    def opened(self) -> None:
        """Send what was asked for meanwhile, and again what the last encoder left undone."""
        for order in self._orders.values():
            self._supervisor.send(order)

    def received(self, message: Any) -> bool:
        """Take in an answer."""
        self._settle(message)
        return False

    def lost(self, _reason: str) -> None:
        """It died; a picture that was in work at two deaths is taken to be their cause."""
        for call in self._suspects & set(self._orders):
            self._settle(Encoded(call, None, 0.0))
        self._suspects = set(self._orders)

    def gave_up(self) -> None:
        """It died too often; liveness tells."""
        self.alive = False
        for call in list(self._orders):
            self._settle(Encoded(call, None, 0.0))

    def _settle(self, encoded: Encoded) -> None:
        answer = self._answers.get(encoded.call)
        if answer is not None and not answer.done():
            answer.set_result(encoded)
