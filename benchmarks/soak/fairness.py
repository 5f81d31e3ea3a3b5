"""Large and small pictures together: nobody's wait is more than twice that of a fair share of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from soak.report import Finding, at_most, told
from soak.servers import STUB, running
from twinshot_server.load.clients import Outcome, Target, apply_load
from twinshot_server.load.plan import LoadPlan
from twinshot_server.load.summary import quantile

_SECONDS = {"1024x1024": 0.1, "512x512": 0.025, "256x256": 0.00625}
"""What the stub takes: slow enough that the machine's cores do not decide instead of the engine."""
_LOAD = 0.85


def measure_fairness(folder: Path, seconds: float) -> list[Finding]:
    """p99 by size under a mixed load, against each size alone on an engine of its share's speed."""
    # Each size asks for the same time of the engine.
    weights = {size: 1 / cost for size, cost in _SECONDS.items()}
    rate = _LOAD / len(_SECONDS) * sum(weights.values())
    with running(folder, *STUB, TWINSHOT_STUB_MS="100") as server:
        target = Target(server.url, image_format="jpeg", extra={"deadline_ms": 60_000})
        idle = asyncio.run(apply_load(target, LoadPlan(5, 6, dict.fromkeys(_SECONDS, 1.0))))
        outcomes = asyncio.run(apply_load(target, LoadPlan(rate, seconds, weights)))
    findings = []
    for size, cost in _SECONDS.items():
        own = [each for each in outcomes if each.arrival.size == size and each.status == 200]
        p99 = (quantile([each.seconds for each in own], 0.99) or 0.0) * 1000
        fair = _fair_p99(own, cost * len(_SECONDS)) * 1000 + _overhead(idle, size, cost)
        name = f"mixed sizes at {_LOAD:.0%} load"
        findings.append(told(name, f"{size}, p99", p99, "ms"))
        findings.append(at_most(name, f"{size}, p99 of its fair share's", p99 / fair, "times", 2))
    return findings


def _fair_p99(outcomes: Sequence[Outcome], cost: float) -> float:
    """p99 of the same arrivals, one after the other, on an engine that takes `cost` seconds for each."""
    free, waits = 0.0, []
    for moment in sorted(each.arrival.moment for each in outcomes):
        free = max(free, moment) + cost
        waits.append(free - moment)
    return quantile(waits, 0.99) or 0.0


def _overhead(idle: Sequence[Outcome], size: str, cost: float) -> float:
    """Milliseconds that a request of this size takes besides the engine, when nothing else is asked."""
    own = [each.seconds - cost for each in idle if each.arrival.size == size]
    return max(0.0, quantile(own, 0.5) or 0.0) * 1000
