"""What was asked and what was measured, as rows of one table."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Finding:
    """One figure. `kept` is whether it is as good as `asked`, or None where nothing was asked."""

    scenario: str
    figure: str
    measured: float
    unit: str
    asked: str = ""
    kept: bool | None = None


def at_most(scenario: str, figure: str, measured: float, unit: str, bound: float) -> Finding:
    """A figure that must not be larger than `bound`."""
    return Finding(scenario, figure, round(measured, 2), unit, f"at most {bound:g}", measured <= bound)


def at_least(scenario: str, figure: str, measured: float, unit: str, bound: float) -> Finding:
    """A figure that must not be smaller than `bound`."""
    return Finding(scenario, figure, round(measured, 2), unit, f"at least {bound:g}", measured >= bound)


def told(scenario: str, figure: str, measured: float, unit: str) -> Finding:
    """A figure for which nothing was asked."""
    return Finding(scenario, figure, round(measured, 2), unit)


def as_table(findings: Iterable[Finding]) -> str:
    """The findings in Markdown."""
    lines = ["| scenario | figure | measured | asked | |", "|---|---|---|---|---|"]
    marks = {True: "yes", False: "**no**", None: ""}
    for each in findings:
        measured = f"{each.measured:g} {each.unit}".strip()
        lines.append(f"| {each.scenario} | {each.figure} | {measured} | {each.asked} | {marks[each.kept]} |")
    return "\n".join(lines)


def as_rows(findings: Iterable[Finding], benchmark: str = "soak") -> list[dict[str, object]]:
    """A flat row for each finding, with what measured it, where and when."""
    from twinshot_engine.benchmark.rows import commit, versions

    facts = {
        "benchmark": benchmark,
        "system": "twinshot",
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "load_5_min": round(os.getloadavg()[1], 1),
        "versions": versions(),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    return [facts | asdict(each) for each in findings]


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "CPU")
