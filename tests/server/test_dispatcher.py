"""The dispatcher around the fake engine on a thread, on a loop of the test's own."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from PIL import Image
from serving import make_job

from twinshot_engine.errors import CheckpointError, InvalidRequestError
from twinshot_engine.types import GenerateRequest
from twinshot_server.app import create_app
from twinshot_server.processes.messages import Cost
from twinshot_server.scheduling.admission import RefusedError
from twinshot_server.scheduling.dispatcher import Dispatcher
from twinshot_server.scheduling.jobs import DeadlineError, FailedError, Job, StoppingError
from twinshot_server.scheduling.pool import NotReadyError
from twinshot_server.settings import Settings

Test = Callable[[Dispatcher], Coroutine[Any, Any, None]]


@asynccontextmanager
async def dispatching(engine: Any, **settings: Any) -> AsyncIterator[Dispatcher]:
    """A dispatcher whose engine is ready; everything has its slot back at the end."""
    app = create_app(Settings.model_validate(settings), engine)
    dispatcher: Dispatcher = app.state.service.dispatcher
    dispatcher.start()
    await asyncio.wait_for(asyncio.wrap_future(dispatcher.ready), 10)
    engine.forget_warm_up()
    try:
        yield dispatcher
    finally:
        engine.release()
        await asyncio.wait_for(dispatcher.stop(), 10)
    assert dispatcher.running == dispatcher.waiting == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(dispatcher._arena.descriptor)
    assert sorted(dispatcher._slots) == list(range(dispatcher._arena.slots))


def run(test: Test, engine: Any, **settings: Any) -> None:
    async def inside() -> None:
        async with dispatching(engine, **settings) as dispatcher:
            await asyncio.wait_for(test(dispatcher), 20)

    asyncio.run(inside())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


async def draw(dispatcher: Dispatcher, *jobs: Job) -> list[int]:
    """The colours of the jobs' pictures, which are their seeds."""
    for job in jobs:
        dispatcher.submit([job])
    pictures = await asyncio.gather(*(job.done for job in jobs))
    return [Image.open(io.BytesIO(picture.content)).getpixel((0, 0))[0] for picture in pictures]


async def heard(dispatcher: Dispatcher) -> None:
    """Wait until the engine has read what it was sent before: it answers in order."""
    await dispatcher.engines.validate(GenerateRequest("a", 1, 64, 32))


def drawn_seeds(engine: Any) -> list[list[int]]:
    return [[request.seed for request in batch] for batch in engine.batches]


def batching_pays(dispatcher: Dispatcher) -> None:
    """Make it known that more pictures cost no more than one."""
    dispatcher.costs.install(Cost((64, 32), 1, count, 0.01) for count in (1, 2, 4))


def test_everyone_gets_their_own_picture(engine: Any) -> None:
    async def test(dispatcher: Dispatcher) -> None:
        assert await draw(dispatcher, *(make_job(seed) for seed in range(12))) == list(range(12))

    run(test, engine)
    assert drawn_seeds(engine) == [[seed] for seed in range(12)]


def test_a_batch_is_what_waits_when_that_pays_and_is_asked_for(engine: Any) -> None:
    async def test(dispatcher: Dispatcher) -> None:
        batching_pays(dispatcher)
        engine.hold()
        jobs = [make_job(seed) for seed in range(6)]
        drawing = asyncio.create_task(draw(dispatcher, *jobs))
        await until(engine.busy.is_set)
        await until(lambda: dispatcher.waiting < 2)  # the engine is late, so its next batch is sent ahead
        engine.release()
        assert await drawing == list(range(6))
        assert jobs[1].done.result().together == 4

    run(test, engine, batching="fast", max_batch=4)
    assert drawn_seeds(engine) == [[0], [1, 2, 3, 4], [5]]


def test_times_hold_the_wait_the_engines_stages_and_the_file(engine: Any) -> None:
    async def test(dispatcher: Dispatcher) -> None:
        job = make_job()
        started = time.monotonic()
        await draw(dispatcher, job)
        times = job.done.result().times
        assert (times.text, times.denoise, times.decode) == (0.001, 0.002, 0.003)
        assert 0 <= times.queue + times.encode <= time.monotonic() - started + 0.006

    run(test, engine)


def test_a_failure_reaches_its_own_and_no_other(engine: Any) -> None:
    async def test(dispatcher: Dispatcher) -> None:
        engine.failure = RuntimeError("out of luck")
        with pytest.raises(FailedError):
            await draw(dispatcher, make_job(1))
        engine.failure = InvalidRequestError("The prompt is not to my taste.")
        with pytest.raises(InvalidRequestError, match="taste"):
            await draw(dispatcher, make_job(1))
        engine.failure = None
        assert await draw(dispatcher, make_job(2)) == [2]

    run(test, engine)


def test_cancelled_jobs_are_dropped_at_each_gate(engine: Any) -> None:
    async def test(dispatcher: Dispatcher) -> None:
        engine.hold()
        jobs = [make_job(seed) for seed in range(4)]
        for job in jobs:
            dispatcher.submit([job])
        await until(engine.busy.is_set)
        await until(lambda: dispatcher.engines[0].running == 2)
        for job in jobs[:3]:  # being drawn, next in the engine, waiting
            job.done.cancel()
        await until(lambda: dispatcher.waiting == 1)
        await heard(dispatcher)
        engine.release()
        await jobs[3].done
        await until(lambda: dispatcher.running == 0)

    dropped: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "twinshot_server.metrics.Metrics.count_dropped", lambda _self, gate: dropped.append(gate)
        )
        run(test, engine)
    assert drawn_seeds(engine) == [[0], [3]]
    assert sorted(dropped) == ["draw", "encode", "queue"]


def test_a_deadline_ends_what_was_accepted(engine: Any) -> None:
    async def test(dispatcher: Dispatcher) -> None:
        engine.hold()
        first = make_job(0)
        dispatcher.submit([first])
        await until(engine.busy.is_set)
        late = make_job(1, deadline=time.monotonic() + 0.2)
        dispatcher.submit([late])
        with pytest.raises(DeadlineError):
            await late.done
        await heard(dispatcher)
        engine.release()
        await first.done
        assert await draw(dispatcher, make_job(2)) == [2]

    run(test, engine)
    assert drawn_seeds(engine) == [[0], [2]]


def test_what_cannot_be_in_time_is_refused_and_costs_nothing(engine: Any) -> None:
    async def test(dispatcher: Dispatcher) -> None:
        dispatcher.costs.install([Cost((64, 32), 1, 1, 5.0)])
        with pytest.raises(RefusedError, match="was wanted within"):
            dispatcher.submit([make_job(deadline=time.monotonic() + 1)])
        assert dispatcher.waiting == dispatcher.running == 0

    run(test, engine)


def test_all_of_an_order_or_nothing(engine: Any) -> None:
    async def test(dispatcher: Dispatcher) -> None:
        engine.hold()
        dispatcher.submit([make_job(0)])
        await until(engine.busy.is_set)
        await until(lambda: dispatcher.waiting == 0)
        with pytest.raises(RefusedError, match="exceed the 2 that may wait"):
            dispatcher.submit([make_job(seed) for seed in (1, 2, 3)])
        assert dispatcher.waiting == 0

    run(test, engine, max_queue=2)


def test_the_queue_keeps_what_waits_while_an_engine_is_replaced(engine: Any) -> None:
    async def test(dispatcher: Dispatcher) -> None:
        engine.hold()
        jobs = [make_job(seed) for seed in range(5)]
        for job in jobs:
            dispatcher.submit([job])
        await until(lambda: dispatcher.engines[0].running == 2)
        dispatcher.engines[0].child.kill()
        with pytest.raises(FailedError, match="ended while it drew"):
            await jobs[0].done
        assert dispatcher.waiting == 4  # the one that the engine had not begun with is back
        assert not dispatcher.engines.available
        with pytest.raises(NotReadyError, match="restarted"):
            dispatcher.submit([make_job()])
        engine.forget_warm_up()
        engine.release()
        assert len(await asyncio.gather(*(job.done for job in jobs[1:]))) == 4

    run(test, engine)
    assert [seeds for seeds in drawn_seeds(engine) if seeds != [0]][-4:] == [[1], [2], [3], [4]]


def test_what_nobody_wants_does_not_come_back_from_an_engine_that_ended(engine: Any) -> None:
    async def test(dispatcher: Dispatcher) -> None:
        engine.hold()
        jobs = [make_job(seed) for seed in range(3)]
        for job in jobs:
            dispatcher.submit([job])
        await until(lambda: dispatcher.engines[0].running == 2)
        jobs[1].done.cancel()
        dispatcher.engines[0].child.kill()
        with pytest.raises(FailedError):
            await jobs[0].done
        engine.release()
        await jobs[2].done

    run(test, engine)
    assert [1] not in drawn_seeds(engine)


def test_a_hung_engine_is_noticed_and_replaced(engine: Any) -> None:
    async def test(dispatcher: Dispatcher) -> None:
        engine.hold()
        job = make_job()
        dispatcher.submit([job])
        with pytest.raises(FailedError):
            await job.done
        assert not dispatcher.alive
        engine.release()
        await until(lambda: dispatcher.alive)
        assert await draw(dispatcher, make_job(2)) == [2]

    run(test, engine, hang_seconds=0.1)


def test_an_engine_that_keeps_ending_is_given_up(engine: Any) -> None:
    async def test(dispatcher: Dispatcher) -> None:
        engine.hold()
        waiting = [make_job(seed) for seed in range(3)]
        for job in waiting:
            dispatcher.submit([job])
        dispatcher.engines[0].child.kill()
        for job in waiting:
            with pytest.raises(FailedError):
                await job.done
        assert not dispatcher.alive
        assert dispatcher.engines.failure is not None

    run(test, engine, engine_restarts=0)


def test_finishing_lets_the_accepted_end_and_refuses_more(engine: Any) -> None:
    async def test(dispatcher: Dispatcher) -> None:
        engine.hold()
        jobs = [make_job(seed) for seed in range(3)]
        for job in jobs:
            dispatcher.submit([job])
        finishing = asyncio.create_task(dispatcher.finish())
        await asyncio.sleep(0)
        with pytest.raises(StoppingError):
            dispatcher.submit([make_job()])
        engine.release()
        await finishing
        assert all(job.done.result() for job in jobs)

    run(test, engine)


def test_stopping_fails_what_waits(engine: Any) -> None:
    jobs: list[Job] = []

    async def test(dispatcher: Dispatcher) -> None:
        engine.hold()
        jobs.extend(make_job(seed) for seed in range(4))
        for job in jobs:
            dispatcher.submit([job])
        await until(engine.busy.is_set)
        asyncio.get_running_loop().call_later(0.1, engine.release)

    run(test, engine)
    assert all(job.done.done() for job in jobs)
    with pytest.raises(StoppingError):
        jobs[-1].done.result()


def test_a_model_that_cannot_be_loaded_is_remembered(engine: Any) -> None:
    def warm(_progress: object) -> None:
        raise CheckpointError("There is no folder 'x'.")

    async def inside() -> None:
        engine.warm = warm
        dispatcher: Dispatcher = create_app(Settings(), engine).state.service.dispatcher
        dispatcher.start()
        with pytest.raises(CheckpointError, match="no folder"):
            await asyncio.wrap_future(dispatcher.ready)
        assert isinstance(dispatcher.engines.failure, CheckpointError)
        with pytest.raises(NotReadyError, match="could not be loaded"):
            dispatcher.submit([make_job()])
        await dispatcher.stop()

    asyncio.run(inside())


def test_validation_asks_the_engine_and_knows_adapters(engine: Any) -> None:
    async def test(dispatcher: Dispatcher) -> None:
        await dispatcher.engines.validate(GenerateRequest("a", 1, 64, 32))
        with pytest.raises(InvalidRequestError, match="65x32"):
            await dispatcher.engines.validate(GenerateRequest("a", 1, 65, 32))
        with pytest.raises(InvalidRequestError, match="adapter 'ink' is not loaded; loaded: none"):
            await dispatcher.engines.validate(GenerateRequest("a", 1, 64, 32, 1, "ink"))

    run(test, engine)
