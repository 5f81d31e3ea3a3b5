"""Clients that hang up: nothing of theirs is left, and hardly anything is drawn for them."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

from soak.report import Finding, at_most, told
from soak.servers import STUB, Server, eventually, running

_BODY = '{"prompt": "a", "stream": %s}'
_HEAD = "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_DRAWN = 'twinshot_batch_size_sum{model="stub"}'


def measure_leaving(folder: Path, clients: int) -> list[Finding]:
    """`clients` that leave at random moments, and then a whole queue that leaves at once."""
    with running(folder, *STUB, "--max-queue", "128") as server:
        asyncio.run(_leave_at_random(server, 100))  # every slot of the shared memory was touched once
        eventually(server.is_idle)
        drawn = server.metric(_DRAWN)
        files, memory = server.open_files(), server.memory()
        asyncio.run(_leave_at_random(server, clients))
        eventually(server.is_idle)
        eventually(lambda: server.open_files() <= files, 5)
        name = f"{clients} clients leave at random"
        findings = [
            at_most(name, "files and sockets left open", server.open_files() - files, "", 0),
            at_most(name, "pictures still waiting or running", 0.0 if server.is_idle() else 1.0, "", 0),
            at_most(name, "memory grown", server.memory() - memory, "MB", 16),
            told(name, "pictures drawn", server.metric(_DRAWN) - drawn, ""),
        ]
        after = asyncio.run(_leave_together(server, 60))
        findings.append(at_most("60 that wait leave at once", "drawn after they left", after, "", 1))
        findings.append(at_most(name, "then answered wrongly", server.post().status_code - 200, "", 0))
    return findings


async def _leave_at_random(server: Server, clients: int) -> None:
    chance = random.Random(3)
    for _ in range(clients // 50):
        await asyncio.gather(*(_ask_and_leave(server, chance.uniform(0, 0.4), chance) for _ in range(50)))


async def _ask_and_leave(server: Server, patience: float, chance: random.Random) -> None:
    async def wait(reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(TimeoutError, ConnectionError):
            await asyncio.wait_for(reader.read(), patience)

    await _ask(server, wait, "true" if chance.random() < 0.5 else "false")


async def _leave_together(server: Server, clients: int) -> float:
    """How many pictures are drawn after everybody left, beyond the one in work."""
    gone = asyncio.Event()

    async def wait(_reader: asyncio.StreamReader) -> None:
        await gone.wait()

    tasks = [asyncio.create_task(_ask(server, wait, "false")) for _ in range(clients)]
    many = clients / 2
    await asyncio.to_thread(eventually, lambda: server.metric("twinshot_requests_waiting") > many)
    gone.set()
    await asyncio.gather(*tasks)
    drawn = await asyncio.to_thread(server.metric, _DRAWN)
    await asyncio.to_thread(eventually, server.is_idle)
    return await asyncio.to_thread(server.metric, _DRAWN) - drawn


async def _ask(server: Server, wait: Callable[[asyncio.StreamReader], Awaitable[None]], stream: str) -> None:
    address = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    body = _BODY % stream
    writer.write((_HEAD % len(body) + body).encode())
    await wait(reader)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
