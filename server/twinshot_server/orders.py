"""The pictures of one request, from acceptance to the last file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

from twinshot_server.lexicon import Reading
from twinshot_server.scheduling.jobs import Job, Picture

Change = tuple[Literal["started", "done"], int]


class Order:
    """Jobs that belong together; `predicted` is how many seconds they should take in all.

    `reading` is how the model reads their prompt.

    Whoever has an order ends it with `cancel`, which does nothing to jobs that are done.
    """

    def __init__(self, jobs: Sequence[Job], predicted: float, reading: Reading) -> None:
        self.jobs = jobs
        self.reading = reading
        self.predicted = predicted

    async def pictures(self) -> list[Picture]:
        """Every picture, in order. The first failure ends the rest; so does cancelling."""
        try:
            return await asyncio.gather(*(job.done for job in self.jobs))
        finally:
            self.cancel()

    async def changes(self) -> AsyncIterator[Change]:
        """What happens to the jobs, by index, until all are done or one failed."""
        changes: asyncio.Queue[Change] = asyncio.Queue()
        for index, job in enumerate(self.jobs):
            job.started.add_done_callback(_putter(changes, ("started", index)))
            job.done.add_done_callback(_putter(changes, ("done", index)))
        left = len(self.jobs)
        while left:
            change = await changes.get()
            left -= change[0] == "done"
            yield change

    def cancel(self) -> None:
        """Drop what is not done yet."""
        for job in self.jobs:
            job.done.cancel()


def _putter(changes: asyncio.Queue[Change], change: Change) -> Any:
    return lambda _future: changes.put_nowait(change)
