"""What is accepted, against a queue played through by hand: a job costs 0.1 s, and then 0.005 s.

Without doubt there is still a caution of 0.02 s.
"""

from __future__ import annotations

import math

import pytest
from serving import make_job

from twinshot_server.processes.messages import Cost
from twinshot_server.scheduling.admission import Forecast, RefusedError, admit
from twinshot_server.scheduling.costs import CostTable
from twinshot_server.scheduling.fair_queue import FairQueue
from twinshot_server.scheduling.jobs import Job, Priority

SIZE, SECONDS, AFTER = (64, 32), 0.1, 0.005

pytestmark = pytest.mark.usefixtures("running_loop")


@pytest.fixture
def costs() -> CostTable:
    """Costs without any doubt, so that moments can be added up."""
    table = CostTable()
    table.install([Cost(SIZE, 1, 1, SECONDS), Cost(SIZE, 2, 1, 10 * SECONDS)])
    for estimate in (*table._known.values(), table.after, table.error):
        estimate.deviation = 0.0
    return table


def queue_of(costs: CostTable, *jobs: Job) -> FairQueue:
    queue = FairQueue(costs, 1)
    for job in jobs:
        queue.push(job)
    return queue


def due(seconds: float, **options: object) -> Job:
    return make_job(deadline=seconds, **options)


def test_moments_add_up(costs: CostTable) -> None:
    jobs = [due(math.inf) for _ in range(3)]
    forecast = Forecast(queue_of(costs, *jobs), [10.0], costs, 0.0)
    assert [forecast.finish[job.number] for job in jobs] == pytest.approx([10.105, 10.205, 10.305])
    assert forecast.end == pytest.approx(10.305)


def test_several_engines_share_the_queue(costs: CostTable) -> None:
    jobs = [due(math.inf) for _ in range(4)]
    forecast = Forecast(queue_of(costs, *jobs), [10.0, 10.05], costs, 0.0)
    assert [forecast.finish[job.number] for job in jobs] == pytest.approx([10.105, 10.155, 10.205, 10.255])


def test_nothing_waits(costs: CostTable) -> None:
    assert Forecast(queue_of(costs), [1.0], costs, 0.0).end == -math.inf


@pytest.mark.parametrize(("allowed", "accepted"), [(0.33, True), (0.32, False)])
def test_a_deadline_is_held_against_all_that_comes_first(
    allowed: float, accepted: bool, costs: CostTable
) -> None:
    queue = queue_of(costs, due(math.inf), due(math.inf))
    job = due(allowed)
    if accepted:
        assert admit([job], queue, 10, [0.0], costs, 0.0).finish[job.number] == pytest.approx(0.305)
        return
    with pytest.raises(RefusedError, match="in about 305 ms, but was wanted within 320 ms") as caught:
        admit([job], queue, 10, [0.0], costs, 0.0)
    assert caught.value.code == "deadline_unreachable"
    assert caught.value.retry_after == pytest.approx(0.005)


def test_doubt_makes_cautious(costs: CostTable) -> None:
    job = due(0.14)
    admit([job], queue_of(costs), 10, [0.01], costs, 0.0)
    for estimate in costs._known.values():
        estimate.deviation = 0.01
    with pytest.raises(RefusedError):
        admit([job], queue_of(costs), 10, [0.01], costs, 0.0)


def test_caution_leaves_half_of_the_time(costs: CostTable) -> None:
    costs.error.deviation = 10.0
    admit([due(0.22)], queue_of(costs), 10, [0.001], costs, 0.0)
    with pytest.raises(RefusedError):
        admit([due(0.20)], queue_of(costs), 10, [0.001], costs, 0.0)


def test_an_idle_engine_is_tried_if_it_was_ever_fast_enough(costs: CostTable) -> None:
    """After a pause nothing would be fast enough, and nothing drawn that could show it is over."""
    for _ in range(20):
        costs.learn(SIZE, 1, 1, 5.0)
    quick = due(0.12)
    admit([quick], queue_of(costs), 10, [0.0], costs, 0.0)
    for hopeless, free in ((due(0.09), 0.0), (due(0.12), 0.01)):
        with pytest.raises(RefusedError):
            admit([hopeless], queue_of(costs), 10, [free], costs, 0.0)
    with pytest.raises(RefusedError):
        admit([quick], queue_of(costs, due(math.inf)), 10, [0.0], costs, 0.0)


def test_the_bound_counts_pictures(costs: CostTable) -> None:
    queue = queue_of(costs, due(math.inf), due(math.inf))
    admit([due(math.inf)], queue, 3, [0.0], costs, 0.0)
    with pytest.raises(RefusedError, match="2 images wait already and 2 more would exceed the 3") as caught:
        admit([due(math.inf), due(math.inf)], queue, 3, [0.0], costs, 0.0)
    assert caught.value.code == "queue_full"
    assert caught.value.retry_after == pytest.approx(0.205)


def test_what_was_promised_is_kept(costs: CostTable) -> None:
    """A small job would be served before the last of a backlog, and make it late: it has to come later."""
    promised = [due(0.11 * (number + 1) + 0.03, steps=1) for number in range(4)]
    queue = queue_of(costs, *promised)
    with pytest.raises(RefusedError, match="accepted before"):
        admit([due(math.inf, caller="another")], queue, 10, [0.0], costs, 0.0)
    patient = due(math.inf, priority=Priority.BATCH)
    admit([patient], queue_of(costs, *[due(1.0) for _ in range(4)]), 10, [0.0], costs, 0.0)


def test_who_is_late_anyway_does_not_shut_the_door(costs: CostTable) -> None:
    late = due(0.01)
    job = due(math.inf)
    assert admit([job], queue_of(costs, late), 10, [0.0], costs, 0.0).late == {late.number}


def test_asking_changes_nothing(costs: CostTable) -> None:
    queue = queue_of(costs, due(math.inf))
    admit([due(math.inf)], queue, 10, [0.0], costs, 0.0)
    assert len(queue) == 1
