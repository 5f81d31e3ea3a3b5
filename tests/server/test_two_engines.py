"""One queue and two engines: who gets the next picture, and what one engine's end means for the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from serving import make_job

from twinshot_server.app import _encoder_thread, _engine_thread
from twinshot_server.metrics import Metrics
from twinshot_server.processes.arena import Arena
from twinshot_server.processes.messages import Cost
from twinshot_server.scheduling.dispatcher import Dispatcher
from twinshot_server.scheduling.jobs import FailedError
from twinshot_server.settings import Settings

BIG, SMALL = (64, 32), (32, 32)


@pytest.fixture
def other(engine: Any) -> Any:
    return type(engine)()


@asynccontextmanager
async def dispatching(*engines: Any, **settings: Any) -> AsyncIterator[Dispatcher]:
    """A dispatcher whose engines are all ready, and held."""
    made, arena = Settings.model_validate(settings), Arena(16)
    spawns = [_engine_thread(made, arena, engine) for engine in engines]
    dispatcher = Dispatcher(made, arena, spawns, _encoder_thread(arena), Metrics())
    dispatcher.start()
    await until(lambda: len(dispatcher.engines.available) == len(engines))
    dispatcher.costs.install([Cost(BIG, 1, 1, 5.0), Cost(SMALL, 1, 1, 0.02)])
    for engine in engines:
        engine.forget_warm_up()
        engine.hold()
    try:
        yield dispatcher
    finally:
        for engine in engines:
            engine.release()
        await asyncio.wait_for(dispatcher.stop(), 10)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def running(dispatcher: Dispatcher) -> list[int]:
    return [each.running for each in dispatcher.engines]


def test_the_next_picture_goes_where_the_predicted_wait_is_least(engine: Any, other: Any) -> None:
    async def test() -> None:
        async with dispatching(engine, other) as dispatcher:
            jobs = [make_job(1, BIG), make_job(2, SMALL), make_job(3, SMALL)]
            for job in jobs:
                dispatcher.submit([job])
            await until(lambda: dispatcher.waiting == 0)
            assert running(dispatcher) == [1, 2]
            engine.release()
            other.release()
            await asyncio.gather(*(job.done for job in jobs))
        assert [[request.seed for request in batch] for batch in engine.batches] == [[1]]
        assert [[request.seed for request in batch] for batch in other.batches] == [[2], [3]]

    asyncio.run(test())


def test_the_queue_of_an_engine_that_ended_moves_on_to_the_other(engine: Any, other: Any) -> None:
    async def test() -> None:
        async with dispatching(engine, other, engine_restarts=0) as dispatcher:
            jobs = [make_job(seed, SMALL) for seed in range(6)]
            for job in jobs:
                dispatcher.submit([job])
            await until(lambda: running(dispatcher) == [2, 2])
            dispatcher.engines[0].child.kill()
            await until(lambda: dispatcher.waiting == 3)  # the two that waited, and one that comes back
            other.release()
            ended = await asyncio.gather(*(job.done for job in jobs), return_exceptions=True)
            assert [type(each) for each in ended].count(FailedError) == 1
        drawn = sorted(batch[0].seed for batch in other.batches)
        lost = [seed for seed, each in enumerate(ended) if isinstance(each, FailedError)]
        assert drawn == [seed for seed in range(6) if seed not in lost]

    asyncio.run(test())


def test_predictions_reckon_with_every_engine_that_can_draw(engine: Any, other: Any) -> None:
    async def test() -> None:
        async with dispatching(engine, other, engine_restarts=0) as dispatcher:
            for seed in range(4):
                dispatcher.submit([make_job(seed, BIG)])
            assert 5 < dispatcher.predicted_wait < 11
            dispatcher.engines[0].child.kill()
            await until(lambda: len(dispatcher.engines.available) == 1)
            await until(lambda: dispatcher.waiting == 2)
            assert 11 < dispatcher.predicted_wait < 16

    asyncio.run(test())
