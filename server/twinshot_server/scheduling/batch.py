"""What an engine has in work, and whom it tells what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from twinshot_engine.types import Size, StageTimes
from twinshot_server.processes.messages import Cost, Finished
from twinshot_server.scheduling.jobs import Job

if TYPE_CHECKING:
    from twinshot_server.scheduling.engine_link import EngineLink


@dataclass(slots=True)
class Batch:
    """Jobs in an engine, by number, with the slots their pixels go to."""

    number: int
    jobs: Mapping[int, tuple[Job, int]]
    expected: float
    """Seconds it should take."""
    started: float
    """The moment it was sent, or its forerunner ended."""
    images: int = field(init=False)
    size: Size = field(init=False)
    passes: int = field(init=False)

    def __post_init__(self) -> None:
        self.images = len(self.jobs)
        first, _ = next(iter(self.jobs.values()))
        self.size, self.passes = first.size, first.request.passes


class Owner(Protocol):
    """The dispatcher, as its engines call it."""

    def engine_ready(self, engine: EngineLink, costs: Sequence[Cost]) -> None:
        """It is loaded and warm."""
        ...

    def engine_drew(self, job: Job, slot: int, times: StageTimes, together: int) -> None:
        """A job's pixels are in its slot."""
        ...

    def engine_dropped(self, job: Job, slot: int, error: Exception | None) -> None:
        """A job will not be drawn: it failed, or nobody wants it."""
        ...

    def engine_returned(self, job: Job, slot: int) -> None:
        """A job comes back untouched: the engine ended before it began with it."""
        ...

    def engine_finished(self, batch: Batch, finished: Finished) -> None:
        """It is done with a batch."""
        ...

    def engine_lost(self, reason: str) -> None:
        """It ended, or hung and was ended; what it had in work was dropped."""
        ...

    def engine_gave_up(self) -> None:
        """It will not come back."""
        ...
