"""Twice as many requests as the engine can serve: what is accepted is kept, the rest is refused at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

from soak.report import Finding, at_least, at_most, told
from soak.servers import STUB, Server, running
from twinshot_server.load.clients import Outcome, Target, apply_load
from twinshot_server.load.plan import LoadPlan
from twinshot_server.load.summary import quantile

_CAPACITY = 40.0  # images a second of the stub at 25 ms
_DEADLINE_MS = 500


def measure_overload(folder: Path, seconds: float) -> list[Finding]:
    """Goodput, broken promises, refusals, memory and the event loop's lag at twice the capacity."""
    with running(folder, *STUB) as server:
        _load(server, _CAPACITY, min(seconds, 5.0))  # memory is touched, costs are learned
        before, lag = server.memory(), server.histogram("twinshot_event_loop_lag_seconds")
        outcomes = _load(server, 2 * _CAPACITY, seconds)
        after = server.histogram("twinshot_event_loop_lag_seconds")
        grown = server.memory() - before
    return [*_judge(outcomes, seconds), *_judge_server(grown, lag, after)]


def measure_miniature(folder: Path, seconds: float) -> list[Finding]:
    """The same with the built-in miniature, which wants the cores of client and server for itself."""
    with running(folder) as server:
        started = time.monotonic()
        for seed in range(6):
            server.post(seed=seed, format="jpeg")
        capacity = 6 / (time.monotonic() - started)
        deadline_ms = round(10_000 / capacity)
        target = Target(server.url, image_format="jpeg", extra={"deadline_ms": deadline_ms})
        plan = LoadPlan(2 * capacity, seconds, {"auto": 1.0})
        outcomes = asyncio.run(apply_load(target, plan))
    accepted = [each for each in outcomes if each.status != 429]
    kept = [each for each in accepted if each.status == 200 and each.seconds * 1000 <= deadline_ms]
    name = f"overload 2x of the miniature ({capacity:.1f} images/s), deadline {deadline_ms} ms"
    return [
        told(name, "requests", len(outcomes), ""),
        told(name, "accepted and in time", 100 * len(kept) / max(1, len(accepted)), "%"),
        told(name, "goodput of capacity", 100 * len(kept) / (seconds * capacity), "%"),
        told(name, "accepted and not served", sum(each.status != 200 for each in accepted), ""),
    ]


def _load(server: Server, rate: float, seconds: float) -> list[Outcome]:
    target = Target(server.url, image_format="jpeg", extra={"deadline_ms": _DEADLINE_MS})
    return asyncio.run(apply_load(target, LoadPlan(rate, seconds, {"1024x1024": 1.0})))


def _judge(outcomes: list[Outcome], seconds: float) -> Iterator[Finding]:
    name = f"overload 2x, {seconds:.0f} s, deadline {_DEADLINE_MS} ms"
    refused = [each.seconds * 1000 for each in outcomes if each.status == 429]
    accepted = [each for each in outcomes if each.status != 429]
    kept = [each for each in accepted if each.status == 200 and each.seconds * 1000 <= _DEADLINE_MS]
    yield told(name, "requests", len(outcomes), "")
    yield at_least(name, "accepted and in time", 100 * len(kept) / max(1, len(accepted)), "%", 99.9)
    yield at_least(name, "goodput of capacity", 100 * len(kept) / (seconds * _CAPACITY), "%", 95)
    yield told(name, "refusals, p50", quantile(refused, 0.5) or 0.0, "ms")
    yield at_most(name, "refusals, p99", quantile(refused, 0.99) or 0.0, "ms", 20)
    failed = sum(each.status not in {200, 429} for each in outcomes)
    yield told(name, "accepted and not served", failed, "")


def _judge_server(grown: float, before: dict[float, float], after: dict[float, float]) -> Iterator[Finding]:
    name = "overload, the server"
    yield at_most(name, "memory grown", grown, "MB", 16)
    counts = {bound: count - before.get(bound, 0.0) for bound, count in after.items()}
    total = counts[float("inf")]
    p99 = next(bound for bound, count in counts.items() if count >= 0.99 * total)
    yield at_most(name, "event loop lag, p99 no more than", p99 * 1000, "ms", 5)
