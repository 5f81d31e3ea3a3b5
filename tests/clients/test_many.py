"""Many pictures: bounded, in order, and what a failure does to the rest."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import replace

import httpx2
import pytest
from asking import Asker
from canned import Recorder, image_file

from twinshot import AsyncClient, Generated, UnprocessableEntityError

PROMPTS = [f"number {number}" for number in range(20)]


class Crowd:
    """Holds requests until `size` of them are there at once, and counts how many that ever were."""

    def __init__(self, size: int) -> None:
        self.inside = self.most = 0
        self._barrier = threading.Barrier(size)
        self._lock = threading.Lock()

    def __call__(self, _request: httpx2.Request) -> httpx2.Response:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self._barrier.wait(10)
        with self._lock:
            self.inside -= 1
        return httpx2.Response(200, content=image_file())


def refusing(word: str) -> Recorder:
    """Refuses prompts that have this word."""

    class Refusing(Recorder):
        def __call__(self, request: httpx2.Request) -> httpx2.Response:
            answer = super().__call__(request)
            refused = word in json.loads(request.content)["prompt"]
            return httpx2.Response(422, json={"detail": f"{word} is unknown."}) if refused else answer

    return Refusing()


def slow(ask: Asker) -> Asker:
    """Gives others a turn, as a network does."""
    return replace(ask, seconds=0.01)


def test_pictures_come_in_the_prompts_order_whichever_is_first(ask: Asker) -> None:
    server = Recorder()
    told: list[tuple[int, int]] = []
    asked = [{"prompt": prompt, "seed": seed} for seed, prompt in enumerate(PROMPTS)]
    pictures = ask(server, "generate_many", asked, progress=lambda *each: told.append(each))
    assert [picture.seed for picture in pictures] == list(range(20))
    assert told == [(done, 20) for done in range(1, 21)]
    assert len(server.requests) == 20


def test_options_are_those_of_all_and_a_prompts_own_win(ask: Asker) -> None:
    server = Recorder()
    prompts = ("a", {"prompt": "b", "steps": 2}, {"prompt": "c", "seed": None})
    ask(server, "generate_many", (each for each in prompts), seed=7, steps=4, concurrency=1)
    assert [json.loads(request.content) for request in server.requests] == [
        {"prompt": "a", "seed": 7, "steps": 4},
        {"prompt": "b", "seed": 7, "steps": 2},
        {"prompt": "c", "seed": server.body["seed"], "steps": 4},
    ]


def test_no_prompts_are_no_pictures(ask: Asker) -> None:
    assert ask(Recorder(), "generate_many", []) == []


def test_no_more_than_the_bound_are_asked_for_at_once() -> None:
    crowd = Crowd(4)
    Asker("sync")(crowd, "generate_many", PROMPTS, concurrency=4)
    assert crowd.most == 4


def test_no_more_than_the_bound_are_asked_for_at_once_in_asyncio() -> None:
    inside = most = 0

    async def answer(_request: httpx2.Request) -> httpx2.Response:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        for _ in range(5):
            await asyncio.sleep(0)
        inside -= 1
        return httpx2.Response(200, content=image_file())

    async def main() -> None:
        async with AsyncClient("http://server", transport=httpx2.MockTransport(answer)) as client:
            await client.generate_many(PROMPTS, concurrency=4)

    asyncio.run(main())
    assert most == 4


def test_the_first_failure_ends_the_rest_and_is_raised(ask: Asker) -> None:
    server = refusing("number 3")
    with pytest.raises(UnprocessableEntityError, match="number 3 is unknown"):
        slow(ask)(server, "generate_many", PROMPTS, concurrency=1)
    assert 4 <= len(server.requests) < 20


def test_who_waits_for_another_try_does_not_hold_up_the_end() -> None:
    """The second prompt is refused while the first waits for a minute."""
    waits = threading.Event()

    def answer(request: httpx2.Request) -> httpx2.Response:
        if json.loads(request.content)["prompt"] == "number 0":
            waits.set()
            return httpx2.Response(429, headers={"Retry-After": "59"})
        assert waits.wait(10)
        time.sleep(0.1)
        return httpx2.Response(422, json={"detail": "No."})

    with pytest.raises(UnprocessableEntityError):
        Asker("sync")(answer, "generate_many", PROMPTS[:2])


def test_failures_may_take_their_pictures_places(ask: Asker) -> None:
    told: list[int] = []
    outcomes = ask(
        refusing("number 1"),
        "generate_many",
        PROMPTS,
        return_errors=True,
        progress=lambda done, _total: told.append(done),
    )
    failed = [index for index, each in enumerate(outcomes) if isinstance(each, UnprocessableEntityError)]
    assert failed == [1, *range(10, 20)]
    assert all(isinstance(each, Generated) for index, each in enumerate(outcomes) if index not in failed)
    assert told == list(range(1, 21))


def test_a_failure_of_the_callers_own_ends_the_rest(ask: Asker) -> None:
    def fail(_done: int, _total: int) -> None:
        raise KeyError("mine")

    server = Recorder()
    with pytest.raises(KeyError, match="mine"):
        slow(ask)(server, "generate_many", PROMPTS, concurrency=1, progress=fail)
    assert len(server.requests) < 20


@pytest.mark.parametrize(
    ("prompts", "options", "said"),
    [
        ("a red car", {}, "prompts is the text 'a red car'; give a list of prompts"),
        (["a"], {"concurrency": 0}, "concurrency is 0; it must be 1 or more"),
    ],
)
def test_a_misuse_is_told(prompts: object, options: dict[str, int], said: str, ask: Asker) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        ask(Recorder(), "generate_many", prompts, **options)


def test_being_cancelled_cancels_every_request() -> None:
    waiting: list[asyncio.Task[object] | None] = []

    async def never(_request: httpx2.Request) -> httpx2.Response:
        waiting.append(asyncio.current_task())
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    async def main() -> None:
        async with AsyncClient("http://server", transport=httpx2.MockTransport(never)) as client:
            work = asyncio.create_task(client.generate_many(PROMPTS, concurrency=4))
            while len(waiting) < 4:
                await asyncio.sleep(0)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            assert all(task is not None and task.cancelled() for task in waiting)
            assert len(waiting) == 4

    asyncio.run(main())
