"""Two engines on one machine, and `kill -9` of one of them under load."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from fleet.clients import Tally, apply_mixed_load
from soak.report import Finding, at_most, told
from soak.servers import Server, eventually, running
from twinshot_server.load.summary import quantile

_PERIOD = 20.0
"""Seconds from one kill to the next."""


def measure_replicas(folder: Path, seconds: float, users: int) -> list[Finding]:
    """The miniature twice, and a mixed load; every 20 s an engine is killed."""
    with running(folder, "--replicas", "2", "--engine-restarts", "50") as server:
        eventually(lambda: engines(server) == 2, 60)
        tally, restarts = asyncio.run(_kill_under_load(server, seconds, users))
        restarted = server.metric('twinshot_engine_restarts_total{reason="exit"}')
    name = f"two engines of the miniature, one killed every {_PERIOD:g} s"
    return [
        told(name, "load", seconds, "s"),
        told(name, "engines killed", len(restarts), ""),
        at_most(name, "killed and not replaced", len(restarts) - restarted, "", 0),
        at_most(name, "longest until there were two again", max(restarts), "s", 10),
        *judge(name, tally),
    ]


def judge(name: str, tally: Tally) -> list[Finding]:
    """What became of a load."""
    return [
        told(name, "asked for (files, streams, sessions)", tally.asked.total(), ""),
        told(name, "HTTP answers", tally.answers.total(), ""),
        told(name, "of these 500", tally.answers[500], ""),
        told(name, "of these 429", tally.answers[429], ""),
        told(name, "of these 503", tally.answers[503], ""),
        told(name, "no answer", tally.answers[0], ""),
        told(name, "streams and sessions cut, asked for again", tally.cut.total(), ""),
        at_most(name, "lost in spite of the client's retries", len(tally.lost), "", 0),
        told(name, "time to the picture, p50", (quantile(tally.seconds, 0.5) or 0.0) * 1000, "ms"),
        told(name, "time to the picture, p99", (quantile(tally.seconds, 0.99) or 0.0) * 1000, "ms"),
    ]


def engines(server: Server) -> float:
    """How many engines can draw."""
    return server.metric("twinshot_engines_available")


async def _kill_under_load(server: Server, seconds: float, users: int) -> tuple[Tally, list[float]]:
    load = asyncio.create_task(apply_mixed_load(server.url, users, lambda spent: spent > seconds))
    started, restarts = time.monotonic(), list[float]()
    await asyncio.sleep(min(2.0, seconds / 4))
    while time.monotonic() - started < seconds - 2.0:
        killed = time.monotonic()
        await asyncio.to_thread(_kill_busy_engine, server)
        await asyncio.to_thread(eventually, lambda: engines(server) == 2, 60)
        restarts.append(time.monotonic() - killed)
        await asyncio.sleep(max(0.0, _PERIOD - restarts[-1]))
    return await load, restarts


def _kill_busy_engine(server: Server) -> None:
    """While something is drawn, so that the kill costs as much as it can."""
    eventually(lambda: server.metric("twinshot_requests_running") > 0, 60)
    server.kill_child("engine")
    eventually(lambda: engines(server) == 1)
