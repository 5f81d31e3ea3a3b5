"""One engine as the dispatcher sees it: what it is doing, when it will be free, whether it is well."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import structlog

from twinshot_engine.errors import InvalidRequestError
from twinshot_engine.types import EngineInfo, GenerateRequest
from twinshot_server.engine_protocol import LOADING_ERRORS
from twinshot_server.processes.children import Spawn
from twinshot_server.processes.messages import (
    Answered,
    Begin,
    CannotLoad,
    ChangeAdapter,
    Draw,
    Drawn,
    Finished,
    Forget,
    Loading,
    NotDrawn,
    Ready,
    Task,
    Validate,
)
from twinshot_server.processes.start_clock import StartClock
from twinshot_server.processes.supervisor import Supervisor
from twinshot_server.scheduling.batch import Batch, Owner
from twinshot_server.scheduling.jobs import FailedError, Job

_log = structlog.stdlib.get_logger("twinshot")

State = Literal["starting", "ready", "restarting", "failed"]
_numbers = itertools.count(1)
_RESTORING = 0
"""The call by which a restarted engine is given its adapters again; nobody waits for the answer."""


class EngineLostError(Exception):
    """The engine ended before it answered."""


class EngineLink:
    """The front's side of one engine. `hang_seconds` without an answer is a hang, and ends it."""

    def __init__(self, name: str, spawn: Spawn, owner: Owner, *, restarts: int, hang_seconds: float) -> None:
        self.name = name
        self.state: State = "starting"
        self.info: EngineInfo | None = None
        self.adapters: Sequence[str] = ()
        self.failure: BaseException | None = None
        """What keeps it from loading."""
        self.progress: tuple[str, float] = ("starting", 0.0)
        self.gpu_bytes: tuple[int, int] | None = None
        self.start_seconds: Mapping[str, float] = {}
        """Of each stage of its last start."""
        self.batches: deque[Batch] = deque()
        self.hung = False
        self._owner = owner
        self._hang_seconds = hang_seconds
        self._supervisor = Supervisor(name, spawn, self, restarts)
        self._clock = StartClock()
        self._calls: dict[int, asyncio.Future[Answered]] = {}
        self._sources: dict[str, str | None] = {}
        """Of the adapters that were loaded in service, or None of those unloaded, for one that restarts."""
        self._watchdog: asyncio.Task[None] | None = None
        self._stopping = False

    def start(self) -> None:
        """Begin to load, on the running event loop."""
        self._supervisor.start()
        self._watchdog = asyncio.get_running_loop().create_task(self._watch(), name=f"{self.name} watchdog")

    async def stop(self) -> None:
        """End the engine; what it draws is lost."""
        self._stopping = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self.hung:
            self._supervisor.kill()
        await self._supervisor.stop()

    @property
    def child(self) -> Any:
        """The running process or thread, if there is one."""
        return self._supervisor.child

    @property
    def running(self) -> int:
        """How many jobs are in work."""
        return sum(len(batch.jobs) for batch in self.batches)

    def free_at(self, now: float) -> float:
        """The moment at which it should be done with what it has."""
        if not self.batches:
            return now
        first, *rest = self.batches
        return max(now, first.started + first.expected) + sum(batch.expected for batch in rest)

    def draw(self, jobs: Sequence[tuple[Job, int]], expected: float) -> None:
        """Give it jobs, each with the slot for its pixels, that should take so many seconds together."""
        by_number = {job.number: (job, slot) for job, slot in jobs}
        batch = Batch(next(_numbers), by_number, expected, time.monotonic())
        self.batches.append(batch)
        tasks = [Task(job.number, slot, job.request) for job, slot in jobs]
        self._supervisor.send(Draw(batch.number, tasks))

    def forget(self, job: Job) -> None:
        """Tell it that nobody wants this job any more."""
        for batch in self.batches:
            if job.number in batch.jobs:
                self._supervisor.send(Forget(batch.number, job.number))

    async def validate(self, request: GenerateRequest) -> None:
        """Ask whether it can draw this. Raises InvalidRequestError or EngineLostError."""
        await self._call(lambda call: Validate(call, request))

    async def change_adapter(self, name: str, source: str | None) -> None:
        """Load or unload an adapter. Raises InvalidRequestError or EngineLostError."""
        answer = await self._call(lambda call: ChangeAdapter(call, name, source))
        self.adapters = answer.adapters
        self._sources[name] = source

    async def _call(self, message: Any) -> Answered:
        if self.state != "ready":
            raise EngineLostError
        number, answer = next(_numbers), asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        self._supervisor.send(message(number))
        try:
            answered: Answered = await answer
        finally:
            del self._calls[number]
        if answered.refusal is not None:
            raise InvalidRequestError(answered.refusal)
        return answered

    def opened(self) -> None:
        """It was started, and loads. What its forerunner measured or learned since holds for it too."""
        self.progress = ("starting", 0.0)
        self._clock = StartClock()
        self._supervisor.send(Begin(measure=self.info is None))

    def received(self, message: Any) -> bool:
        """Take in a message; True after one that makes a restart useless."""
        match message:
            case Loading(stage, fraction):
                self.progress = (stage, fraction)
                self._clock.enter(stage)
            case Ready(info, costs, adapters):
                self.info, self.adapters, self.state, self.hung = info, adapters, "ready", False
                self._restore_adapters()
                self.start_seconds = self._clock.finish()
                _log.info("engine ready", engine=self.name, seconds=self.start_seconds)
                self._owner.engine_ready(self, costs)
            case CannotLoad():
                self.failure = _failure(message)
                return message.sentence is not None or self.info is None
            case Answered(call):
                self._take_answer(call, message)
            case _:
                self._note_work(message)
        return False

    def _restore_adapters(self) -> None:
        """Repeat what was loaded and unloaded in service, before the engine gets anything to draw."""
        # One that was loaded and unloaded in service is not there.
        wanted = {name: source for name, source in self._sources.items() if source or name in self.adapters}
        for name, source in wanted.items():
            self._supervisor.send(ChangeAdapter(_RESTORING, name, source))
        names = dict.fromkeys((*self.adapters, *wanted))
        self.adapters = tuple(name for name in names if wanted.get(name, ...) is not None)

    def _take_answer(self, call: int, answer: Answered) -> None:
        if call == _RESTORING:
            if answer.refusal is not None:
                _log.error("adapter not restored", engine=self.name, reason=answer.refusal)
                self.adapters = answer.adapters
        elif (waiting := self._calls.get(call)) and not waiting.done():
            waiting.set_result(answer)

    def _note_work(self, message: Drawn | NotDrawn | Finished) -> None:
        if isinstance(message, Finished):
            self._finish(message)
        elif (found := self._take(message.job)) is None:
            _log.error("engine answered for a job that it does not have", job=message.job)
        elif isinstance(message, Drawn):
            self._owner.engine_drew(*found, message.times, message.together)
        else:
            self._owner.engine_dropped(*found, _reason(message.refusal, dropped=message.dropped))

    def lost(self, reason: str) -> None:
        """The process ended: what it was drawing failed, what it had not begun with waits again.

        What it was drawing may be what ended it, so no other engine is tried with that.
        """
        self.state = "restarting" if self.info else "starting"
        batches, self.batches = self.batches, deque()
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(EngineLostError())
        if batches:
            for job, slot in batches.popleft().jobs.values():
                self._owner.engine_dropped(job, slot, FailedError("The engine ended while it drew this."))
        for job, slot in reversed([each for batch in batches for each in batch.jobs.values()]):
            self._owner.engine_returned(job, slot)
        if not self._stopping:
            self._owner.engine_lost("hung" if self.hung else reason)

    def gave_up(self) -> None:
        """It ended too often."""
        self.state = "failed"
        self.failure = self.failure or FailedError(f"{self.name} ended too often.")
        self._owner.engine_gave_up()

    def _take(self, number: int) -> tuple[Job, int] | None:
        for batch in self.batches:
            if number in batch.jobs:
                found = batch.jobs[number]
                batch.jobs = {key: value for key, value in batch.jobs.items() if key != number}
                return found
        return None

    def _finish(self, finished: Finished) -> None:
        batch = self.batches.popleft()
        self.gpu_bytes = finished.gpu_bytes
        if self.batches:
            self.batches[0].started = time.monotonic()
        self._owner.engine_finished(batch, finished)

    async def _watch(self) -> None:
        """End the engine if a batch takes far longer than such batches do."""
        while True:
            await asyncio.sleep(min(1.0, self._hang_seconds / 4))
            if not self.batches or self.hung:
                continue
            batch = self.batches[0]
            limit = max(self._hang_seconds, 10 * batch.expected)
            if time.monotonic() - batch.started > limit:
                self.hung = True
                _log.error("engine hangs", engine=self.name, seconds=round(limit, 1))
                self._supervisor.kill()


def _failure(message: CannotLoad) -> Exception:
    if message.sentence is None:
        return FailedError("The model failed to load; the log says why.")
    kinds = {kind.__name__: kind for kind in LOADING_ERRORS}
    return kinds[message.kind](message.sentence)


def _reason(refusal: str | None, *, dropped: bool) -> Exception | None:
    if dropped:
        return None
    return InvalidRequestError(refusal) if refusal else FailedError("The engine failed on this request.")
