"""Faults under load: what they cost, and how long the server takes to serve again."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx2

from soak.report import Finding, at_most, told
from soak.servers import STUB, Server, eventually, running
from twinshot_server.load.clients import Outcome, Target, apply_load
from twinshot_server.load.plan import LoadPlan

_RATE = 20.0  # half of what the stub can do

Fault = Callable[[Server], None]


def measure_faults(folder: Path, seconds: float) -> list[Finding]:
    """kill -9, a crash from within, a hang, memory that runs out, and SIGTERM, each under load."""
    fast = ("--batching", "fast", "--max-batch", "4")
    pays = {"TWINSHOT_STUB_SHARED": "0.6"}
    with running(folder, *STUB, "--hang-seconds", "1") as server:
        findings = _strike(server, "kill -9 of the engine", lambda server: _kill(server, "engine"), seconds)
        findings += _strike(
            server, "kill -9 of the encoder", lambda server: _kill(server, "encoder"), seconds
        )
        findings += _strike(
            server, "engine crashes from within", lambda server: _send(server, "!crash"), seconds
        )
        findings += _strike(
            server, "engine hangs (limit 1 s)", lambda server: _send(server, "!hang"), seconds
        )
    with running(folder, *STUB, *fast, **pays) as server:
        findings += _strike(server, "out of memory in batches", _run_out_of_memory, seconds, rate=60.0)
    return [*findings, *_stop_under_load(folder, seconds)]


def _strike(server: Server, name: str, fault: Fault, seconds: float, rate: float = _RATE) -> list[Finding]:
    """Load for some seconds, the fault in their middle."""
    moments: list[float] = []

    async def both() -> list[Outcome]:
        # Longer than a restart takes on a busy machine: counted is what gets lost, not what comes late.
        target = Target(server.url, image_format="jpeg", extra={"deadline_ms": 45_000})
        loading = asyncio.create_task(apply_load(target, LoadPlan(rate, seconds, {"1024x1024": 1.0})))
        await asyncio.sleep(seconds / 2)
        moments.append(time.monotonic())
        await asyncio.to_thread(fault, server)
        await asyncio.to_thread(eventually, lambda: server.post(size="256x256").status_code == 200)
        moments.append(time.monotonic())
        return await loading

    statuses = Counter(each.status for each in asyncio.run(both()))
    eventually(lambda: server.health("/livez") == 200)
    return [
        told(name, f"of {statuses.total()} requests answered 500", statuses[500], ""),
        told(name, "refused meanwhile (503)", statuses[503], ""),
        at_most(name, "accepted, then neither drawn nor told", _lost(statuses), "", 0),
        told(name, "until it drew again", moments[1] - moments[0], "s"),
    ]


def _lost(statuses: Counter[int]) -> int:
    return statuses.total() - sum(statuses[status] for status in (200, 429, 500, 503))


def _kill(server: Server, role: str) -> None:
    server.kill_child(role)


def _send(server: Server, prompt: str) -> None:
    """Have the engine do what the prompt says; its answer is a 500."""
    httpx2.post(f"{server.url}/generate", json={"prompt": prompt}, timeout=30)


def _run_out_of_memory(server: Server) -> None:
    """Requests that cannot be drawn together with others, among those that can."""

    async def several() -> None:
        async with httpx2.AsyncClient(base_url=server.url, timeout=30) as http:
            body = {"prompt": "!out-of-memory", "n": 4, "format": "jpeg"}
            answers = await asyncio.gather(*(http.post("/generate", json=body) for _ in range(5)))
            if {answer.status_code for answer in answers} != {200}:
                raise RuntimeError(f"not drawn in parts: {[answer.text[:200] for answer in answers]}")

    asyncio.run(several())


def _stop_under_load(folder: Path, seconds: float) -> list[Finding]:
    """SIGTERM; clients go elsewhere as soon as the server says that it is not ready, as Kubernetes would."""
    name = "SIGTERM under load"
    with running(folder, *STUB, "--drain-seconds", "1") as server:
        statuses = asyncio.run(_drain(server, seconds / 2))
        code = server.process.wait(30)
    return [
        told(name, "requests", statuses.total(), ""),
        at_most(name, "accepted and lost", statuses.total() - statuses[200] - statuses[429], "", 0),
        at_most(name, "exit code", code, "", 0),
    ]


async def _drain(server: Server, seconds: float) -> Counter[int]:
    statuses: Counter[int] = Counter()
    tasks = []
    async with httpx2.AsyncClient(base_url=server.url, timeout=30) as http:

        async def ask() -> None:
            try:
                body = {"prompt": "a", "format": "jpeg"}
                statuses[(await http.post("/generate", json=body)).status_code] += 1
            except httpx2.TransportError:
                statuses[0] += 1

        started, ready = time.monotonic(), True
        while ready:
            tasks.append(asyncio.create_task(ask()))
            await asyncio.sleep(1 / 35)  # nearly all that the stub can do, so that some always wait
            if time.monotonic() - started > seconds:
                server.process.send_signal(signal.SIGTERM)
                seconds = float("inf")
            ready = (await http.get("/readyz")).status_code == 200
        await asyncio.gather(*tasks)
    return statuses
