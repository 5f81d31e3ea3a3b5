from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from twinshot_engine.errors import CheckpointError
from twinshot_engine.types import GenerateRequest
from twinshot_server.dispatcher import Dispatcher
from twinshot_server.request_queue import QueueClosedError

Start = Callable[..., Dispatcher]


def request(seed: int, width: int = 64) -> GenerateRequest:
    return GenerateRequest("a red car", seed, width, 32)


@pytest.fixture
def start(engine: Any) -> Iterator[Start]:
    """Start a dispatcher, with the fake engine unless told otherwise; it is stopped after the test."""
    started: list[Dispatcher] = []

    def begin(load: Callable[..., Any] = lambda _progress: engine, **options: Any) -> Dispatcher:
        dispatcher = Dispatcher(load, **{"max_batch": 4, "max_queue": 16} | options)
        dispatcher.start()
        started.append(dispatcher)
        return dispatcher

    yield begin
    engine.release()
    for dispatcher in started:
        dispatcher.stop()
        assert not dispatcher.alive


def test_what_waits_is_drawn_together_and_everyone_gets_their_own(start: Start, engine: Any) -> None:
    sizes: list[int] = []
    dispatcher = start(on_batch=sizes.append)
    engine.hold()
    results = [dispatcher.submit(request(0))]
    engine.busy.wait(10)
    results += [dispatcher.submit(request(seed)) for seed in range(1, 6)]
    assert (dispatcher.running, dispatcher.waiting) == (1, 5)
    engine.release()
    drawn = [result.result(10) for result in results]
    assert [int(each.pixels[0, 0, 0]) for each in drawn] == [0, 1, 2, 3, 4, 5]
    assert [each.batch_size for each in drawn] == [1, 4, 4, 4, 4, 1]
    dispatcher.stop()
    assert sizes == [1, 4, 1]


def test_sizes_are_not_mixed(start: Start, engine: Any) -> None:
    dispatcher = start()
    engine.hold()
    results = [dispatcher.submit(request(seed, width)) for seed, width in enumerate([64, 32, 64, 32])]
    engine.release()
    assert [result.result(10).pixels.shape for result in results] == [(32, 64, 3), (32, 32, 3)] * 2
    assert all(len({each.width for each in batch}) == 1 for batch in engine.batches)


def test_times_hold_the_wait_and_the_engines_stages(start: Start, engine: Any) -> None:
    times = start().submit(request(1)).result(10).times
    assert 0 <= times.queue < 10
    assert (times.text, times.denoise, times.decode, times.encode) == (0.001, 0.002, 0.003, 0.0)


def test_a_failure_reaches_its_batch_and_no_other(start: Start, engine: Any) -> None:
    dispatcher = start()
    engine.failure = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        dispatcher.submit(request(1)).result(10)
    engine.failure = None
    assert np.all(dispatcher.submit(request(2)).result(10).pixels == 2)


def test_a_cancelled_request_never_reaches_the_engine(start: Start, engine: Any) -> None:
    dispatcher = start()
    engine.hold()
    first = dispatcher.submit(request(1))
    engine.busy.wait(10)
    assert dispatcher.submit(request(2)).cancel()
    last = dispatcher.submit(request(3))
    engine.release()
    first.result(10)
    last.result(10)
    assert [each.seed for batch in engine.batches for each in batch] == [1, 3]


def test_a_model_that_cannot_be_loaded_is_remembered(start: Start) -> None:
    def load(_progress: object) -> Any:
        raise CheckpointError("there is no such folder")

    dispatcher = start(load)
    with pytest.raises(CheckpointError, match="no such folder"):
        dispatcher.ready.result(10)
    assert dispatcher.engine is None
    assert isinstance(dispatcher.failure, CheckpointError)
    with pytest.raises(QueueClosedError):
        dispatcher.submit(request(1))


def test_stopping_interrupts_a_long_load(start: Start) -> None:
    stopping = threading.Event()

    def load(progress: Callable[[str, float], None]) -> Any:
        stopping.wait(10)
        while True:
            progress("weights", 0.5)

    dispatcher = start(load)
    threading.Timer(0.05, stopping.set).start()
    dispatcher.stop(10)
    assert not dispatcher.alive
    assert isinstance(dispatcher.failure, QueueClosedError)


def test_retry_after_follows_the_engines_pace(start: Start, engine: Any) -> None:
    dispatcher = start()
    assert dispatcher.retry_after == 1
    engine.hold()
    first = dispatcher.submit(request(0))
    engine.busy.wait(10)
    threading.Timer(1.1, engine.release).start()
    first.result(10)
    engine.busy.clear()
    engine.hold()
    for seed in range(9):
        dispatcher.submit(request(seed))
    engine.busy.wait(10)
    assert dispatcher.retry_after >= 2
