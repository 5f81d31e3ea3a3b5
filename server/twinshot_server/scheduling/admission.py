"""Admission: a request is accepted only if it, and everything accepted before it, can be done in time.

At one step every forward pass of a size costs the same, so the queue can simply be played through: what is
predicted is what the dispatcher will do, because both pop the same queue.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from twinshot_server.scheduling.costs import CostTable
from twinshot_server.scheduling.fair_queue import FairQueue
from twinshot_server.scheduling.jobs import Job

_CAUTION = 4.0
"""Deviations added to a predicted moment before it is held against a deadline."""
_PAUSE = 0.02
"""Seconds of caution at least: a calm hour says nothing about the operating system's next pause."""
_LARGEST_CAUTION = 0.5
"""The part of a job's time that caution may take: more would leave engines idle after every pause."""


class RefusedError(Exception):
    """A request that would come too late, or find no place; `retry_after` is in seconds."""

    def __init__(self, code: str, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


class Forecast:
    """When each waiting job should be done if nothing more comes.

    `free` holds, for each engine, the moment at which it is free. Moments are of `time.monotonic()`.
    """

    def __init__(self, queue: FairQueue, free: Sequence[float], costs: CostTable, now: float) -> None:
        self.finish: dict[int, float] = {}
        """The expected moment, by the job's number."""
        self._cautious: dict[int, float] = {}
        self._jobs: list[Job] = []
        self._now = now
        engines = [(moment, 0.0) for moment in free]
        heapq.heapify(engines)
        waiting = queue.copy()
        while engines and (batch := waiting.pop()):
            estimate = costs.estimate(batch[0].size, batch[0].request.passes, len(batch))
            start, variance = heapq.heappop(engines)
            end, variance = start + estimate.mean, variance + estimate.deviation**2
            heapq.heappush(engines, (end, variance))
            self._note(batch, end, variance, costs)

    def _note(self, batch: Sequence[Job], end: float, variance: float, costs: CostTable) -> None:
        after, error = costs.after, costs.error
        doubt = math.sqrt(variance + after.deviation**2 + error.deviation**2)
        caution = max(_PAUSE, max(0.0, error.mean) + _CAUTION * doubt)
        for job in batch:
            most = _LARGEST_CAUTION * max(0.0, job.deadline - self._now)
            self.finish[job.number] = end + after.mean
            self._cautious[job.number] = end + after.mean + min(caution, most)
            self._jobs.append(job)

    @property
    def late(self) -> set[int]:
        """The numbers of jobs that may miss their deadlines."""
        return {job.number for job in self._jobs if self._cautious[job.number] > job.deadline}

    def lateness(self, job: Job) -> float:
        """Seconds by which a job may miss its deadline; negative if it will not."""
        return self._cautious[job.number] - job.deadline

    @property
    def end(self) -> float:
        """The moment at which everything that waits is done; minus infinity if nothing waits."""
        return max(self.finish.values(), default=-math.inf)


def admit(
    jobs: Sequence[Job], queue: FairQueue, capacity: int, free: Sequence[float], costs: CostTable, now: float
) -> Forecast:
    """The forecast with `jobs` in the queue, which is left as it is. Raises RefusedError."""
    waiting = len(queue)
    if waiting + len(jobs) > capacity:
        wait = Forecast(queue, free, costs, now).end - now
        raise RefusedError("queue_full", _full(waiting, len(jobs), capacity), wait)
    trial = queue.copy()
    for job in jobs:
        trial.push(job)
    forecast = Forecast(trial, free, costs, now)
    worst = max(forecast.lateness(job) for job in jobs)
    if worst > 0 and not _worth_a_try(jobs, queue, free, costs, now):
        raise RefusedError("deadline_unreachable", _too_late(jobs, forecast, now), worst)
    late = forecast.late - {job.number for job in jobs}
    if late and late - Forecast(queue, free, costs, now).late:
        message = "It would make requests that were accepted before miss their deadlines."
        raise RefusedError("deadline_unreachable", message, forecast.end - now)
    return forecast


def _worth_a_try(
    jobs: Sequence[Job], queue: FairQueue, free: Sequence[float], costs: CostTable, now: float
) -> bool:
    """Whether one job finds an idle engine that was fast enough once.

    Else one long pause would make everything look too slow, and nothing would be drawn to show otherwise.
    """
    idle = len(jobs) == 1 and not len(queue) and min(free) <= now
    least = costs.estimate(jobs[0].size, jobs[0].request.passes).least + costs.after.least
    return idle and now + least <= jobs[0].deadline


def _full(waiting: int, more: int, capacity: int) -> str:
    return f"{waiting} images wait already and {more} more would exceed the {capacity} that may wait."


def _too_late(jobs: Sequence[Job], forecast: Forecast, now: float) -> str:
    expected = max(forecast.finish[job.number] for job in jobs) - now
    allowed = min(job.deadline for job in jobs) - now
    return (
        f"It would be done in about {expected * 1000:.0f} ms, but was wanted within {allowed * 1000:.0f} ms."
    )
