"""What Ray Serve keeps when a replica is killed or taken away, and what its way costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from openai import APIError, AsyncOpenAI

from fleet.clients import Ask, LostError, Tally, Ways, apply_mixed_load
from fleet.cluster import MODEL, STUB_ARGUMENTS, Cluster, cluster
from fleet.replicas import judge
from fleet.rolling import SMALL_STUB
from soak.report import Finding, at_most, told
from soak.servers import STUB, eventually, running
from soak.speed import ask
from twinshot import AsyncClient
from twinshot_server.load.summary import quantile


def measure_cluster(folder: Path, seconds: float, users: int, *, stub: bool) -> list[Finding]:
    """A mixed load, `kill -9` of a replica after a third of it; then one replica is taken away."""
    arguments, environment = (STUB_ARGUMENTS, SMALL_STUB) if stub else ({}, {})
    with cluster(folder, arguments, 2, **environment) as made:
        killed, restarted = asyncio.run(_load(made, users, seconds, _kill))
        scaled, _ = asyncio.run(_load(made, users, max(15.0, seconds / 10), lambda made: made.scale(1)))
    engine = "the stub" if stub else "the miniature"
    name = f"Ray Serve, two replicas of {engine}, one killed"
    findings = [
        told(name, "load", seconds, "s"),
        told(name, "until there were two again", restarted, "s"),
        *judge(name, killed),
    ]
    name = f"Ray Serve, from two replicas of {engine} to one"
    failed = at_most(name, "HTTP requests that failed", scaled.failed_tries, "", 0)
    return [*findings, failed, *judge(name, scaled)]


def measure_path(folder: Path, requests: int) -> list[Finding]:
    """The same application behind Ray's HAProxy and alone, by turns; one client, 1024x1024 JPEG."""
    name = "Ray Serve, one client, 1024x1024 JPEG of the stub"
    with running(folder, *STUB) as alone, cluster(folder, STUB_ARGUMENTS, 1) as made:
        ways = {
            "alone": ask(alone.url, "jpeg", requests),
            "HAProxy": ask(f"{made.url}/{MODEL}", "jpeg", requests),
            "gateway and HAProxy": ask(made.url, "jpeg", requests),
        }
        turns = list(zip(*ways.values(), strict=True))[requests // 10 :]
    samples = dict(zip(ways, zip(*turns, strict=True), strict=True))
    p50 = {way: quantile(times, 0.5) or 0.0 for way, times in samples.items()}
    p99 = {way: quantile(times, 0.99) or 0.0 for way, times in samples.items()}
    return [
        *(told(name, f"{way}: beyond the engine, p50", each, "ms") for way, each in p50.items()),
        *(told(name, f"{way}: beyond the engine, p99", each, "ms") for way, each in p99.items()),
        at_most(name, "what HAProxy adds, p50", p50["HAProxy"] - p50["alone"], "ms", 4),
        told(name, "what gateway and HAProxy add, p50", p50["gateway and HAProxy"] - p50["alone"], "ms"),
    ]


async def _load(
    made: Cluster, users: int, seconds: float, fault: Callable[[Cluster], None]
) -> tuple[Tally, float]:
    """The load, the fault after a third of it, and how long that took."""
    async with _by_name(made.url) as by_name:
        more: Ways = {"by name": (by_name, 1)}
        url = f"{made.url}/{MODEL}"
        loading = asyncio.create_task(apply_mixed_load(url, users, lambda spent: spent > seconds, more))
        await asyncio.sleep(seconds / 3)
        started = time.monotonic()
        await asyncio.to_thread(fault, made)
        spent = time.monotonic() - started
        return await loading, spent


def _kill(made: Cluster) -> None:
    """Kill one, and wait until one answers that is younger."""
    killed = time.time()
    made.kill_replica()
    eventually(lambda: _birth(made) > killed, 400)


def _birth(made: Cluster) -> float:
    """When the process began that answers, whichever of the replicas that is."""
    try:
        lines = httpx2.get(f"{made.url}/{MODEL}/metrics").text.splitlines()
    except httpx2.TransportError:  # the one that was killed
        return 0.0
    values = [line.split()[1] for line in lines if line.startswith("process_start_time_seconds ")]
    return float(values[0]) if values else 0.0


@asynccontextmanager
async def _by_name(url: str) -> AsyncIterator[Ask]:
    """OpenAI's own client, which names the model to the gateway."""
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=60) as openai:

        async def draw(_client: AsyncClient, prompt: str, _seed: int) -> None:
            try:
                answer: Any = await openai.images.generate(model=MODEL, prompt=prompt, size="auto")
            except APIError as error:
                raise LostError(str(error)) from None
            if not answer.data[0].b64_json:
                raise LostError("the answer has no picture")

        yield draw
