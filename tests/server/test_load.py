"""`twinshot bench load`: what it asks, how it counts, and a real server under it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from soak.servers import STUB, Server, running
from twinshot_server.cli import app
from twinshot_server.load.clients import Outcome, Target, apply_load
from twinshot_server.load.plan import Arrival, LoadPlan, Manner, PlanError, parse_sizes
from twinshot_server.load.summary import quantile, summarise

TINY = {"TWINSHOT_STUB_SIZES": "128x128,64x64", "TWINSHOT_STUB_MS": "5"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("load"), *STUB, **TINY) as started:
        yield started


def test_arrivals_are_poisson_weighted_and_repeatable() -> None:
    plan = LoadPlan(50, 200, {"a": 3, "b": 1}, slow=0.1, leaving=0.2)
    arrivals = list(plan.arrivals())
    assert arrivals == list(plan.arrivals())
    assert arrivals != list(LoadPlan(50, 200, {"a": 3, "b": 1}, seed=1).arrivals())
    assert len(arrivals) == pytest.approx(10_000, rel=0.05)
    gaps = [after.moment - before.moment for before, after in pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.05)
    assert variance == pytest.approx(mean**2, rel=0.1)  # as exponential gaps have it
    assert Counter(each.size for each in arrivals)["a"] / len(arrivals) == pytest.approx(0.75, abs=0.02)
    manners = Counter(each.manner for each in arrivals)
    assert manners[Manner.SLOW] / len(arrivals) == pytest.approx(0.1, abs=0.02)
    assert manners[Manner.LEAVING] / len(arrivals) == pytest.approx(0.2, abs=0.02)


def test_sizes_and_their_weights() -> None:
    assert parse_sizes("1024x1024=3, 512x512") == {"1024x1024": 3.0, "512x512": 1.0}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: parse_sizes(""), "names none"),
        (lambda: parse_sizes("a=b"), "'a=b' has no number"),
        (lambda: parse_sizes("a=0"), "not more than 0"),
        (lambda: parse_sizes("a=nan"), "not more than 0"),
        (lambda: LoadPlan(0, 1, {"a": 1}), "rate 0"),
        (lambda: LoadPlan(1, -1, {"a": 1}), "seconds -1"),
        (lambda: LoadPlan(1, 1, {"a": 1}, slow=0.6, leaving=0.6), "parts of one whole"),
    ],
)
def test_plans_that_make_no_sense(make: object, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        make()  # type: ignore[operator]


def test_quantiles_are_of_the_nearest_rank() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [quantile(values, part) for part in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert quantile([], 0.5) is None


def test_a_summary_counts_what_happened() -> None:
    def outcome(status: int, seconds: float, manner: Manner = Manner.NORMAL, size: str = "a") -> Outcome:
        return Outcome(Arrival(0.0, 0, size, manner, 0.1), status, seconds, 1_000_000, 0.001)

    outcomes = [
        outcome(200, 0.1),
        outcome(200, 0.2),
        outcome(200, 0.9),
        outcome(429, 0.002),
        outcome(503, 0.004),
    ]
    outcomes += [
        outcome(200, 5.0, Manner.SLOW),
        outcome(499, 0.1, Manner.LEAVING),
        outcome(500, 0.1, size="b"),
    ]
    *by_size, everything = summarise(outcomes, LoadPlan(1, 10, {"a": 1}), deadline_ms=500)
    assert [row["size"] for row in by_size] == ["a", "b"]
    assert (everything["sent"], everything["served"], everything["failed"], everything["left"]) == (
        8,
        4,
        1,
        1,
    )
    assert (everything["refused"], everything["refusal_p99_ms"]) == (2, 4.0)
    # Who reads slowly says nothing about the server's speed.
    assert (everything["median_ms"], everything["p99_ms"]) == (200.0, 900.0)
    assert (everything["goodput_per_second"], everything["missed_deadline"]) == (0.2, 1)
    assert everything["megabytes"] == 8.0


def test_clients_of_every_manner(server: Server) -> None:
    plan = LoadPlan(60, 2, {"128x128": 1, "64x64": 1}, slow=0.2, leaving=0.3, patience=0.003)
    heard: list[tuple[int, int]] = []
    outcomes = asyncio.run(
        apply_load(Target(server.url), plan, lambda sent, done: heard.append((sent, done)))
    )
    by_manner = {manner: [each for each in outcomes if each.arrival.manner is manner] for manner in Manner}
    assert {each.status for each in by_manner[Manner.NORMAL]} == {200}
    assert {each.status for each in by_manner[Manner.SLOW]} == {200}
    assert 499 in {each.status for each in by_manner[Manner.LEAVING]}
    assert heard[-1] == (len(outcomes), len(outcomes))


def test_the_command_prints_a_table_and_a_line_and_keeps_the_rows(server: Server, tmp_path: Path) -> None:
    kept = tmp_path / "rows.json"
    options = [
        "--rate",
        "20",
        "--seconds",
        "2",
        "--sizes",
        "128x128,64x64",
        "-o",
        str(kept),
        "--format",
        "jpeg",
    ]
    result = CliRunner().invoke(app, ["bench", "load", "--url", server.url, *options])
    assert result.exit_code == 0, result.output
    last = json.loads(result.stdout.splitlines()[-1])
    assert (last["benchmark"], last["system"], last["size"], last["failed"]) == ("load", "twinshot", "all", 0)
    assert last["checkpoint"] == "stub"
    assert [row["size"] for row in json.loads(kept.read_text())] == ["128x128", "64x64", "all"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--url", "http://127.0.0.1:9"], "no answer from http://127.0.0.1:9"),
        (["--url", "nonsense"], "no answer from nonsense"),
        (["--rate", "0"], "rate 0.0 is not more than 0"),
        (["--sizes", "a=b"], "has no number"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(options: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["bench", "load", *options])
    assert result.exit_code == 2
    assert said in result.stderr
