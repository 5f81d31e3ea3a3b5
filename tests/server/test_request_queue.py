from __future__ import annotations

import threading

import pytest

from twinshot_engine.types import GenerateRequest
from twinshot_server.request_queue import Job, QueueClosedError, QueueFullError, RequestQueue


def job(seed: int = 0, width: int = 256, steps: int = 1) -> Job:
    return Job(GenerateRequest("a red car", seed, width=width, steps=steps))


def filled(*jobs: Job, capacity: int = 10) -> RequestQueue:
    queue = RequestQueue(capacity)
    for each in jobs:
        queue.put(each)
    return queue


def seeds(batch: list[Job]) -> list[int]:
    return [each.request.seed for each in batch]


def test_a_batch_is_what_waits_up_to_the_limit() -> None:
    queue = filled(job(1), job(2), job(3))
    assert seeds(queue.take(2)) == [1, 2]
    assert seeds(queue.take(2)) == [3]
    assert len(queue) == 0


def test_the_oldest_decides_the_kind_and_the_others_keep_their_order() -> None:
    queue = filled(job(1), job(2, width=512), job(3), job(4, steps=2), job(5, width=512))
    assert seeds(queue.take(8)) == [1, 3]
    assert seeds(queue.take(8)) == [2, 5]
    assert seeds(queue.take(8)) == [4]


def test_a_full_queue_refuses() -> None:
    queue = filled(job(1), job(2), capacity=2)
    with pytest.raises(QueueFullError):
        queue.put(job(3))


def test_cancelled_jobs_are_neither_drawn_nor_counted() -> None:
    gone = job(1)
    queue = filled(gone, job(2), capacity=2)
    assert gone.result.cancel()
    assert len(queue) == 1
    queue.put(job(3))
    assert seeds(queue.take(8)) == [2, 3]


def test_a_taken_job_cannot_be_cancelled() -> None:
    (taken,) = filled(job()).take(8)
    assert not taken.result.cancel()


def test_closing_cancels_what_waits_refuses_more_and_wakes_the_taker() -> None:
    queue = RequestQueue(4)
    taken: list[list[Job]] = []
    taker = threading.Thread(target=lambda: taken.append(queue.take(8)))
    taker.start()
    queue.close()
    taker.join(10)
    assert taken == [[]]
    with pytest.raises(QueueClosedError):
        queue.put(job())


def test_closing_cancels_waiting_jobs() -> None:
    waiting = job()
    queue = filled(waiting)
    queue.close()
    assert waiting.result.cancelled()
    assert queue.take(8) == []
