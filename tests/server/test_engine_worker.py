"""The engine's side of the socket, with the test as the front."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from twinshot_engine.errors import CheckpointError, InvalidRequestError
from twinshot_engine.types import GenerateRequest
from twinshot_server.processes import channel
from twinshot_server.processes.arena import Arena
from twinshot_server.processes.engine_worker import EngineWorker
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


class Front:
    """A worker on a thread, and what it says."""

    def __init__(
        self, load: Callable[[Any], Any], batches: Sequence[int] = (1,), *, measure: bool = True
    ) -> None:
        self.stream, theirs = socket.socketpair()
        self.stream.settimeout(10)
        self.arena = Arena(8)
        self.error: BaseException | None = None
        self.hung_up = threading.Event()
        worker = EngineWorker(theirs, self.arena, load, batches, on_hang_up=self.hung_up.set)

        def run() -> None:
            with theirs:
                try:
                    worker.run()
                except BaseException as error:  # noqa: BLE001
                    self.error = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        self.say(Begin(measure))

    def say(self, message: object) -> None:
        channel.send(self.stream, message)

    def hear(self) -> Any:
        return channel.receive(self.stream)

    def draw(self, batch: int, *prompts: str) -> list[Any]:
        """Send a batch of jobs 0, 1, 2, … and hear until it is finished."""
        tasks = [
            Task(number, number, GenerateRequest(prompt, number, 64, 32))
            for number, prompt in enumerate(prompts)
        ]
        self.say(Draw(batch, tasks))
        return self.hear_batch()

    def hear_batch(self) -> list[Any]:
        heard = [self.hear()]
        while not isinstance(heard[-1], Finished):
            heard.append(self.hear())
        return heard

    def close(self) -> None:
        self.stream.close()
        self.thread.join(10)
        assert not self.thread.is_alive()


class MoodyEngine:
    """Draws as the fake engine does, except for prompts that say otherwise."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.info, self.warm = engine.info, engine.warm
        self.tried: list[int] = []
        self.most_together = 8

    def validate(self, request: GenerateRequest) -> None:
        if request.prompt == "confuse":
            raise RuntimeError("what?")
        self._engine.validate(request)

    def generate(self, requests: Sequence[GenerateRequest]) -> Any:
        self.tried.append(len(requests))
        if len(requests) > self.most_together:
            raise MemoryError
        for request in requests:
            if request.prompt == "invalid":
                raise InvalidRequestError("The prompt is not to my taste.")
            if request.prompt == "fail":
                raise RuntimeError("no")
            if request.prompt == "break":
                raise type("AcceleratorError", (RuntimeError,), {})("the GPU is gone")
        return self._engine.generate(requests)


@pytest.fixture
def moody(engine: Any) -> MoodyEngine:
    return MoodyEngine(engine)


@pytest.fixture
def front(moody: MoodyEngine) -> Iterator[Front]:
    made = Front(lambda _progress: moody)
    made.hear()
    assert isinstance(made.hear(), Ready)
    moody.tried.clear()
    yield made
    made.close()


def test_it_tells_how_loading_goes_and_what_things_cost(engine: Any) -> None:
    def load(progress: Callable[[str, float], None]) -> Any:
        progress("weights", 0.5)
        return engine

    front = Front(load, batches=(1, 2))
    assert front.hear() == Loading("weights", 0.5)
    assert front.hear() == Loading("measuring costs", 0.0)
    ready = front.hear()
    assert ready.info == engine.info
    kinds = {(cost.size, cost.steps, cost.batch) for cost in ready.costs}
    sizes = ((64, 32), (32, 32))
    assert kinds == {(size, 1, batch) for size in sizes for batch in (1, 2)} | {((64, 32), 2, 1)}
    assert all(cost.seconds > 0 for cost in ready.costs)
    front.close()


def test_what_is_known_is_not_measured_again(engine: Any) -> None:
    front = Front(lambda _progress: engine, measure=False)
    assert front.hear() == Ready(engine.info, (), ())
    assert engine.batches == []
    front.close()


def test_a_front_that_is_gone_at_once_ends_it(engine: Any) -> None:
    ours, theirs = socket.socketpair()
    worker = EngineWorker(theirs, Arena(1), lambda _progress: engine, (1,))
    ours.close()
    worker.run()
    theirs.close()
    assert engine.batches == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            CheckpointError("There is no folder 'x'."),
            CannotLoad("CheckpointError", "There is no folder 'x'."),
        ),
        (ZeroDivisionError("secret"), CannotLoad("ZeroDivisionError", None)),
    ],
)
def test_it_tells_why_it_cannot_load(error: Exception, told: CannotLoad) -> None:
    def load(_progress: object) -> Any:
        raise error

    front = Front(load)
    assert front.hear() == told
    with pytest.raises(EOFError):
        front.hear()
    front.close()


def test_pixels_come_in_their_slots(front: Front) -> None:
    *drawn, finished = front.draw(1, "a", "a", "a")
    assert [(message.job, message.together) for message in drawn] == [(0, 3), (1, 3), (2, 3)]
    assert all(np.all(front.arena.pixels(slot, (64, 32)) == slot) for slot in range(3))
    assert (finished.batch, finished.drawn) == (1, 3)
    assert finished.seconds > 0


def test_a_bad_request_fails_alone(front: Front, moody: MoodyEngine) -> None:
    *told, finished = front.draw(1, "a", "fail", "invalid", "a")
    assert {message.job for message in told if isinstance(message, Drawn)} == {0, 3}
    refusals = {message.job: message.refusal for message in told if isinstance(message, NotDrawn)}
    assert refusals == {1: None, 2: "The prompt is not to my taste."}
    assert finished.drawn == 2
    assert moody.tried == [4, 1, 1, 1, 1]


def test_it_tells_how_many_prompts_it_knew(engine: Any) -> None:
    engine.cache_statistics = SimpleNamespace(hits=5, misses=9)
    front = Front(lambda _progress: engine)
    front.hear()
    front.hear()
    engine.cache_statistics = SimpleNamespace(hits=6, misses=11)
    assert front.draw(1, "a")[-1].lookups == (1, 2)
    assert front.draw(2, "a")[-1].lookups == (0, 0)
    front.close()


def test_what_does_not_fit_into_memory_is_drawn_in_halves(front: Front, moody: MoodyEngine) -> None:
    moody.most_together = 2
    *told, finished = front.draw(1, *"abcdefg")
    assert [message.job for message in told] == list(range(7))
    assert all(message.together <= 2 for message in told)
    assert finished.drawn == 7


def test_what_never_fits_fails_alone(front: Front, moody: MoodyEngine) -> None:
    moody.most_together = 0
    *told, finished = front.draw(1, "a", "a")
    assert told == [NotDrawn(0), NotDrawn(1)]
    assert finished.drawn == 0
    moody.most_together = 8
    assert front.draw(2, "a")[-1].drawn == 1


def test_a_broken_engine_ends_itself(front: Front) -> None:
    front.say(Draw(1, [Task(0, 0, GenerateRequest("break", 0, 64, 32))]))
    with pytest.raises(EOFError):
        front.hear()
    front.thread.join(10)
    assert type(front.error).__name__ == "BrokenEngineError"


def test_unwanted_work_is_not_drawn(front: Front, engine: Any) -> None:
    engine.forget_warm_up()
    engine.hold()
    front.say(Draw(1, [Task(0, 0, GenerateRequest("a", 0, 64, 32))]))
    assert engine.busy.wait(10)
    front.say(Draw(2, [Task(number, number, GenerateRequest("a", number, 64, 32)) for number in (1, 2)]))
    front.say(Forget(2, 1))
    front.say(Forget(1, 0))  # too late: it is being drawn
    front.say(Validate(7, GenerateRequest("a", 0, 64, 32)))
    assert front.hear() == Answered(7)  # so everything before was read as well
    engine.release()
    assert [type(message) for message in front.hear_batch()] == [Drawn, Finished]
    dropped, drawn, finished = front.hear_batch()
    assert dropped == NotDrawn(1, dropped=True)
    assert (drawn.job, finished.drawn) == (2, 1)
    assert [[request.seed for request in batch] for batch in engine.batches] == [[0], [2]]


def test_it_validates_while_it_draws(front: Front, engine: Any) -> None:
    engine.hold()
    front.say(Draw(1, [Task(0, 0, GenerateRequest("a", 0, 64, 32))]))
    front.say(Validate(1, GenerateRequest("a", 0, 65, 32)))
    assert "65x32 is not supported" in front.hear().refusal
    front.say(Validate(2, GenerateRequest("confuse", 0, 64, 32)))
    refusal = front.hear().refusal
    assert "unexpectedly" in refusal
    assert "what?" not in refusal
    engine.release()
    front.hear_batch()


def test_pictures_are_drawn_while_an_adapter_is_loaded(engine: Any) -> None:
    release, adapters = threading.Event(), []
    engine.adapters = adapters

    def load(name: str, _source: str) -> None:
        assert release.wait(10)
        adapters.append(name)

    engine.load_adapter = load
    front = Front(lambda _progress: engine)
    front.hear()
    front.hear()
    front.say(ChangeAdapter(7, "ink", "/somewhere"))
    front.say(Draw(1, [Task(0, 0, GenerateRequest("a", 1, 64, 32))]))
    assert isinstance(front.hear(), Drawn)
    assert isinstance(front.hear(), Finished)
    front.say(Draw(2, [Task(1, 0, GenerateRequest("a", 1, 64, 32, adapter="ink"))]))
    release.set()
    assert front.hear() == Answered(7, None, ("ink",))
    assert isinstance(front.hear(), Drawn)


def test_an_engine_without_adapters_says_so(front: Front) -> None:
    front.say(ChangeAdapter(1, "ink", "/somewhere"))
    assert front.hear() == Answered(1, "This engine takes no adapters.", ())


def test_it_ends_when_the_front_is_gone(moody: MoodyEngine, engine: Any) -> None:
    front = Front(lambda _progress: moody)
    front.hear()
    front.hear()
    engine.forget_warm_up()
    engine.hold()
    front.say(Draw(1, [Task(0, 0, GenerateRequest("a", 200, 64, 32))]))
    assert engine.busy.wait(10)
    front.stream.close()
    assert front.hung_up.wait(10)
    engine.release()
    front.thread.join(10)
    assert not front.thread.is_alive()
    assert not np.any(front.arena.pixels(0, (64, 32)) == 200), (
        "it wrote into a slot that was not its any more"
    )
