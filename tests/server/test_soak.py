"""`make soak` in short: what it counts must hold here too; what it times depends on the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from soak.faults import measure_faults
from soak.leaving import measure_leaving
from soak.overload import measure_overload
from soak.report import Finding, as_rows, as_table, at_least, at_most, told
from soak.speed import measure_encoding


def broken_counts(findings: list[Finding]) -> list[Finding]:
    """Promises about numbers of things, not about time or memory, that were not kept."""
    return [finding for finding in findings if finding.kept is False and finding.unit == ""]


def test_leaving_clients_leave_nothing(tmp_path: Path) -> None:
    assert broken_counts(measure_leaving(tmp_path, 100)) == []


def test_faults_lose_nothing_that_waits(tmp_path: Path) -> None:
    findings = measure_faults(tmp_path, 2.0)
    assert broken_counts(findings) == []
    assert {finding.scenario for finding in findings} >= {"kill -9 of the engine", "SIGTERM under load"}


def test_under_overload_some_is_refused_and_the_rest_is_served(tmp_path: Path) -> None:
    findings = {finding.figure: finding.measured for finding in measure_overload(tmp_path, 4.0)}
    assert findings["requests"] > 250
    assert findings["refusals, p50"] > 0
    assert findings["goodput of capacity"] > 0


def test_image_files_are_measured() -> None:
    assert [finding.measured > 0 for finding in measure_encoding(2)] == [True] * 3


def test_a_report_says_what_was_asked_and_whether_it_was_kept() -> None:
    findings = [
        at_most("a", "lost", 0, "", 0),
        at_most("a", "p99", 16.0, "ms", 15),
        at_least("a", "goodput", 96.123, "%", 95),
        told("b", "p50", 3.0, "ms"),
    ]
    assert [finding.kept for finding in findings] == [True, False, True, None]
    table = as_table(findings).splitlines()
    assert table[3] == "| a | p99 | 16 ms | at most 15 | **no** |"
    assert table[5] == "| b | p50 | 3 ms |  |  |"
    rows = json.loads(json.dumps(as_rows(findings)))
    assert [row["scenario"] for row in rows] == ["a", "a", "a", "b"]
    assert rows[2]["measured"] == pytest.approx(96.12)
    assert "cores" in str(rows[0]["machine"])
