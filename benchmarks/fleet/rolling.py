"""Two servers behind one address, restarted by turns under load: nobody may notice."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from fleet.clients import Tally, apply_mixed_load
from fleet.replicas import judge
from fleet.service import Mode, free_port, service
from soak.report import Finding, at_most, told
from soak.servers import STUB, Server, start

SMALL_STUB = {"TWINSHOT_STUB_SIZES": "256x256", "TWINSHOT_STUB_MS": "25"}
"""Environment of a stub whose pictures cost the rest of the server little."""
_DRAIN_SECONDS = 4.0
"""The service needs a second to see that a server is unready."""
_SETTLE_SECONDS = 2.0


def measure_rolling(folder: Path, mode: Mode, seconds: float, users: int, *, stub: bool) -> list[Finding]:
    """A mixed load on the address while one server after the other is stopped by SIGTERM and started anew."""
    options, environment = (STUB, SMALL_STUB) if stub else ((), {})
    with ExitStack() as stack:
        servers = [Restartable(folder / f"server-{number}.log", options, environment) for number in range(2)]
        for each in servers:
            stack.callback(each.end)
            each.start()
        url = stack.enter_context(service(folder, [each.port for each in servers], mode))
        tally, restarts = asyncio.run(_roll_under_load(url, servers, seconds, users))
    shared, engine = "connections" if mode == "tcp" else "requests", "the stub" if stub else "the miniature"
    name = f"two servers of {engine}, restarted by turns, HAProxy shares out {shared}"
    codes = [code for each in servers for code in each.codes]
    return [
        told(name, "load", seconds, "s"),
        told(name, "restarts", restarts, ""),
        at_most(name, "ended with another code than 0", len(codes) - codes.count(0), "", 0),
        at_most(name, "HTTP requests that failed", tally.failed_tries, "", 0),
        *judge(name, tally),
    ]


@dataclass
class Restartable:
    """A server on a port that stays the same; `codes` are what it ended with."""

    log: Path
    options: tuple[str, ...]
    environment: dict[str, str]
    port: int = field(default_factory=free_port)
    codes: list[int] = field(default_factory=list)
    server: Server | None = None

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        drain = ("--drain-seconds", str(_DRAIN_SECONDS))
        self.server = start(self.log, "--port", str(self.port), *drain, *self.options, **self.environment)

    def restart(self) -> None:
        """SIGTERM, its end, and a new one."""
        if self.server is not None:
            self.codes.append(self.server.stop())
            self.server.end()
        self.start()

    def end(self) -> None:
        """Make sure that it has ended."""
        if self.server is not None:
            self.server.end()


async def _roll_under_load(
    url: str, servers: list[Restartable], seconds: float, users: int
) -> tuple[Tally, int]:
    done = asyncio.Event()
    load = asyncio.create_task(apply_mixed_load(url, users, lambda _spent: done.is_set()))
    started, restarts = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        await asyncio.sleep(_SETTLE_SECONDS)  # until the service has seen that both are ready
        await asyncio.to_thread(servers[restarts % len(servers)].restart)
        restarts += 1
    done.set()
    return await load, restarts
