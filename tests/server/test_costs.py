from __future__ import annotations

import pytest

from twinshot_server.processes.messages import Cost
from twinshot_server.scheduling.costs import CostTable, Estimate

BIG, SMALL = (1024, 1024), (512, 512)


def table(*costs: tuple[tuple[int, int], int, int, float]) -> CostTable:
    made = CostTable()
    made.install(Cost(*cost) for cost in costs)
    return made


def test_what_was_measured_is_what_is_expected() -> None:
    assert table((BIG, 1, 1, 0.1), (SMALL, 1, 1, 0.03)).seconds(SMALL, 1) == 0.03


def test_what_was_not_measured_is_scaled_from_what_is_nearest() -> None:
    costs = table((BIG, 1, 1, 0.1), (SMALL, 1, 1, 0.03))
    assert costs.seconds(BIG, 4) == pytest.approx(0.4)
    assert costs.seconds((512, 1024), 1) == pytest.approx(0.06)
    assert costs.seconds((256, 256), 1) == pytest.approx(0.0075)


def test_without_any_measurement_larger_still_costs_more() -> None:
    costs = CostTable()
    assert 0 < costs.seconds(SMALL, 1) < costs.seconds(BIG, 1) < costs.seconds(BIG, 2)


def test_it_learns_from_service() -> None:
    costs = table((BIG, 1, 1, 0.1))
    for _ in range(100):
        costs.learn(BIG, 1, 1, 0.2)
        costs.learn(SMALL, 1, 1, 0.05)
    assert costs.seconds(BIG, 1) == pytest.approx(0.2, rel=1e-3)
    assert costs.seconds(SMALL, 1) == pytest.approx(0.05, rel=1e-3)


def test_an_estimate_follows_mean_and_deviation() -> None:
    estimate = Estimate(10.0)
    for number in range(400):
        estimate.learn(9.0 if number % 2 else 11.0)
    assert estimate.mean == pytest.approx(10.0, abs=0.2)
    assert estimate.deviation == pytest.approx(1.0, abs=0.2)


def test_doubt_comes_fast_and_goes_slowly() -> None:
    estimate = Estimate(10.0)
    estimate.learn(14.0)
    assert estimate.deviation == 1.0
    for _ in range(20):
        estimate.learn(estimate.mean)
    assert 0.8 < estimate.deviation < 1.0


@pytest.mark.parametrize(
    ("two", "four", "limit", "expected"),
    [
        (0.2, 0.4, 8, 1),  # nothing gained
        (0.12, 0.2, 8, 4),  # each doubling pays
        (0.12, 0.2, 3, 2),  # as far as there is work for
        (0.12, 0.2, 1, 1),
        (0.196, 0.4, 8, 1),  # 2 % is not worth waiting for others
        (0.25, 0.3, 8, 4),  # only the large one pays
    ],
)
def test_batches_are_as_large_as_pays(two: float, four: float, limit: int, expected: int) -> None:
    costs = table((BIG, 1, 1, 0.1), (BIG, 1, 2, two), (BIG, 1, 4, four), (SMALL, 1, 8, 0.001))
    assert costs.best_batch(BIG, 1, limit) == expected


def test_other_kinds_are_not_batched_on_hope() -> None:
    assert table((BIG, 1, 1, 0.1), (BIG, 1, 4, 0.1)).best_batch(SMALL, 1, 8) == 1
