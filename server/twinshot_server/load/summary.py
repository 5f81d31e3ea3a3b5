"""Outcomes as numbers: a row for each size and one for all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from twinshot_server.load.clients import Outcome
from twinshot_server.load.plan import LoadPlan, Manner

Row = dict[str, Any]
_REFUSED = {429, 503}


def summarise(outcomes: Sequence[Outcome], plan: LoadPlan, deadline_ms: float) -> list[Row]:
    """Rows by size, and last one of all sizes together, named `all`."""
    sizes = sorted({outcome.arrival.size for outcome in outcomes})
    rows = [
        _row(size, [each for each in outcomes if each.arrival.size == size], plan, deadline_ms)
        for size in sizes
    ]
    return [*rows, _row("all", outcomes, plan, deadline_ms)]


def quantile(values: Sequence[float], part: float) -> float | None:
    """The smallest value that at least this part of `values` does not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(part * len(ranked)) - 1)] if ranked else None


def _row(size: str, outcomes: Sequence[Outcome], plan: LoadPlan, deadline_ms: float) -> Row:
    served = [each for each in outcomes if each.status == 200]
    answered = [each.seconds * 1000 for each in served if each.arrival.manner is Manner.NORMAL]
    refused = [each.seconds * 1000 for each in outcomes if each.status in _REFUSED]
    in_time = sum(milliseconds <= deadline_ms for milliseconds in answered)
    spent = max([plan.seconds, *(each.arrival.moment + each.seconds for each in served)])
    statuses = Counter(str(each.status or "no answer") for each in outcomes)
    return {
        "size": size,
        "sent": len(outcomes),
        "served": len(served),
        "images_per_second": round(len(served) / spent, 2),
        **_quantiles("", answered),
        "deadline_ms": deadline_ms,
        "goodput_per_second": round(in_time / spent, 2),
        "missed_deadline": len(answered) - in_time,
        "refused": len(refused),
        **_quantiles("refusal_", refused),
        "left": sum(each.status == 499 for each in outcomes),
        "failed": sum(each.status not in {200, 499, *_REFUSED} for each in outcomes),
        "megabytes": round(sum(each.received for each in outcomes) / 1e6, 2),
        "statuses": dict(statuses),
        "sent_late_ms": _rounded(quantile([each.late * 1000 for each in outcomes], 0.99)),
    }


def _quantiles(prefix: str, milliseconds: Sequence[float]) -> Row:
    names = {"median_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}
    return {prefix + name: _rounded(quantile(milliseconds, part)) for name, part in names.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
