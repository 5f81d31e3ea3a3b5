from __future__ import annotations

from collections import Counter

import pytest
from serving import make_job

from twinshot_server.processes.messages import Cost
from twinshot_server.scheduling.costs import CostTable
from twinshot_server.scheduling.fair_queue import WEIGHTS, FairQueue
from twinshot_server.scheduling.jobs import Job, Priority

BIG, SMALL = (256, 256), (64, 32)
SECONDS = {BIG: 0.1, SMALL: 0.01}


pytestmark = pytest.mark.usefixtures("running_loop")


def queue_of(*jobs: Job, largest: int = 1, pays: bool = False) -> FairQueue:
    costs = CostTable()
    for size, seconds in SECONDS.items():
        costs.install(Cost(size, 1, count, seconds * (1 if pays else count)) for count in (1, 2, 4))
    queue = FairQueue(costs, largest)
    for job in jobs:
        queue.push(job)
    return queue


def popped(queue: FairQueue) -> list[list[int]]:
    batches = []
    while batch := queue.pop():
        batches.append([job.request.seed for job in batch])
    return batches


def test_what_is_put_back_comes_first_of_its_kind() -> None:
    queue = queue_of(*(make_job(seed) for seed in range(3)))
    first, second = queue.pop() + queue.pop()
    queue.put_back(second)
    queue.put_back(first)
    assert popped(queue) == [[0], [1], [2]]
    queue.put_back(first)  # its flow is gone by now
    assert popped(queue) == [[0]]


def test_equals_are_served_in_their_order() -> None:
    queue = queue_of(*(make_job(seed) for seed in range(3)))
    assert len(queue) == 3
    assert popped(queue) == [[0], [1], [2]]
    assert len(queue) == 0


def test_a_small_picture_does_not_wait_for_a_backlog_of_large_ones() -> None:
    queue = queue_of(*(make_job(seed, BIG) for seed in range(10)))
    queue.pop()
    queue.push(make_job(99, SMALL))
    assert [99] in popped(queue)[:2]


def test_kinds_share_the_engines_time_not_its_turns() -> None:
    jobs = [make_job(0, BIG) for _ in range(40)] + [make_job(1, SMALL) for _ in range(400)]
    queue = queue_of(*jobs)
    spent: Counter[int] = Counter()
    for _ in range(220):  # while both wait
        (job,) = queue.pop()
        spent[job.request.seed] += round(SECONDS[job.size] * 1000)
    assert spent[0] == pytest.approx(spent[1], rel=0.1)


@pytest.mark.parametrize("largest", [1, 4])
def test_interactive_goes_first_and_batch_is_never_starved(largest: int) -> None:
    later = [make_job(1, priority=Priority.BATCH) for _ in range(50)]
    queue = queue_of(*later, *(make_job(0) for _ in range(450)), largest=largest)
    served = [seed for batch in popped(queue) for seed in batch][:90]
    weights = WEIGHTS[Priority.INTERACTIVE] / WEIGHTS[Priority.BATCH]
    assert served.count(0) / served.count(1) == pytest.approx(weights, rel=0.25)


def test_a_new_interactive_job_passes_all_that_is_batch() -> None:
    queue = queue_of(*(make_job(seed, priority=Priority.BATCH) for seed in range(20)))
    queue.pop()
    queue.push(make_job(99))
    assert queue.pop()[0].request.seed == 99


def test_callers_share_too() -> None:
    greedy = [make_job(0, caller="greedy") for _ in range(50)]
    queue = queue_of(*greedy, *(make_job(1, caller="modest") for _ in range(5)))
    assert Counter(seed for batch in popped(queue)[:10] for seed in batch) == {0: 5, 1: 5}


def test_idleness_earns_no_credit() -> None:
    queue = queue_of(*(make_job(0, SMALL) for _ in range(50)))
    for _ in range(50):
        queue.pop()
    for _ in range(20):
        queue.push(make_job(1, BIG))
        queue.push(make_job(0, SMALL))
    first = [batch[0] for batch in popped(queue)[:4]]
    assert set(first) == {0, 1}


def test_a_batch_is_of_one_kind_and_no_larger_than_pays() -> None:
    jobs = [make_job(seed, SMALL if seed % 2 else BIG) for seed in range(10)]
    for pays, largest, expected in ((True, 4, 4), (True, 2, 2), (False, 4, 1), (True, 1, 1)):
        batch = queue_of(*jobs, largest=largest, pays=pays).pop()
        assert [job.request.seed for job in batch] == [0, 2, 4, 6][:expected]


def test_adapters_and_steps_are_not_mixed() -> None:
    jobs = [
        make_job(0),
        make_job(1, adapter="a"),
        make_job(2, steps=2),
        make_job(3),
        make_job(4, adapter="a"),
    ]
    assert sorted(popped(queue_of(*jobs, largest=4, pays=True))) == [[0, 3], [1, 4], [2]]


def test_guidance_is_not_mixed_and_costs_its_second_pass() -> None:
    jobs = [make_job(0), make_job(1, guidance=3.0), make_job(2), make_job(3, guidance=4.0)]
    assert [job.kind.passes for job in jobs] == [1, 2, 1, 2]
    assert sorted(popped(queue_of(*jobs, largest=4, pays=True))) == [[0, 2], [1], [3]]


def test_jobs_can_be_taken_out() -> None:
    gone, kept = make_job(1), make_job(2)
    queue = queue_of(gone, kept)
    assert queue.remove(gone)
    assert not queue.remove(gone)
    assert not queue.remove(make_job(3, BIG))
    assert popped(queue) == [[2]]


def test_a_copy_tells_what_will_be_and_changes_nothing() -> None:
    jobs = [make_job(seed, BIG if seed % 3 else SMALL) for seed in range(12)]
    queue = queue_of(*jobs, largest=4, pays=True)
    foretold = popped(queue.copy())
    assert len(queue) == 12
    assert popped(queue) == foretold


def test_clearing_hands_out_everything() -> None:
    queue = queue_of(make_job(1), make_job(2, BIG))
    assert {job.request.seed for job in queue.clear()} == {1, 2}
    assert len(queue) == 0
