"""What the Python client costs a call, over the bare bytes of the same request and answer.

A process of its own answers every request at once with the same file, so that what is left is the caller's
work and the loopback's. Four callers take turns on a connection each that stays open: a socket that sends
ready bytes and reads as many as must come (`bytes`), httpx2 alone, `Client.generate` and
`AsyncClient.generate`. Taking turns lets all of them see the same machine. What a caller costs is the median
of its calls less that of `bytes`.

Run it with `PYTHONPATH=benchmarks`. Prints a table and, last, one JSON line; `--write` keeps the rows in
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import platform
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection

import httpx2
import torch

from latency import ROOT, Row
from twinshot import AsyncClient, Client
from twinshot_engine.benchmark.rows import commit, gpu_name, quantiles

PROMPT = "a red car left of a tree on a beach"
IMAGE = b"\x89PNG\r\n\x1a\n" + bytes(60_000)
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: %d\r\nX-Seed: 7\r\n"
    b"X-Request-Id: 0f3c\r\nServer-Timing: queue;dur=0.2, text;dur=2.0, denoise;dur=70.1\r\n\r\n" % len(IMAGE)
)
BODY = json.dumps({"seed": 7, "prompt": PROMPT}).encode()
REQUEST = (
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    % len(BODY)
    + BODY
)

Caller = Callable[[], object]


def main() -> None:
    """Measure, print, and keep the rows if asked to."""
    options = parse_options()
    with answering() as address, callers(address) as named:
        samples = take_turns(named, options.warmup, options.requests)
    rows = summarise(samples)
    print_table(rows)
    if options.write:
        path = ROOT / "benchmarks" / "results" / "client-overhead-cpu.json"
        path.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps({row["part"]: row["over_bytes_ms"] for row in rows}))


def parse_options() -> argparse.Namespace:
    """Options of the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=2000, help="calls of each that count (default 2000)")
    parser.add_argument("--warmup", type=int, default=200, help="how many come before them (default 200)")
    parser.add_argument("--write", action="store_true", help="keep the rows in benchmarks/results/")
    return parser.parse_args()


@contextmanager
def answering() -> Iterator[tuple[str, int]]:
    """A process that answers; yields where it listens and stops it at the end."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join(10)


def serve(ready: Connection) -> None:
    """Answer each request with the file, on every connection, until killed."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            (length,) = (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            writer.write(HEAD + IMAGE)
            await writer.drain()

    async def listen() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname())
        await server.serve_forever()

    asyncio.run(listen())


@contextmanager
def callers(address: tuple[str, int]) -> Iterator[dict[str, Caller]]:
    """A function for each caller, on a connection that stays open."""
    url = f"http://{address[0]}:{address[1]}"
    with ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(address))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain = stack.enter_context(httpx2.Client())
        client = stack.enter_context(Client(url))
        runner = stack.enter_context(asyncio.Runner())
        async_client = AsyncClient(url)
        stack.callback(lambda: runner.run(async_client.close()))
        headers = {"Content-Type": "application/json"}
        yield {
            "bytes": lambda: exchange(connection),
            "httpx2": lambda: plain.post(f"{url}/generate", content=BODY, headers=headers).content,
            "Client": lambda: client.generate(PROMPT, seed=7).bytes,
            "AsyncClient": lambda: runner.run(async_client.generate(PROMPT, seed=7)).bytes,
        }


def exchange(connection: socket.socket) -> None:
    """Send the request and take in as many bytes as the answer has."""
    connection.sendall(REQUEST)
    left = len(HEAD) + len(IMAGE)
    while left:
        left -= len(connection.recv(left))


def take_turns(named: dict[str, Caller], warmup: int, count: int) -> dict[str, list[float]]:
    """Milliseconds of each caller's calls that count."""
    samples: dict[str, list[float]] = {name: [] for name in named}
    for _ in range(warmup + count):
        for name, call in named.items():
            started = time.perf_counter()
            call()
            samples[name].append((time.perf_counter() - started) * 1000)
    return {name: values[warmup:] for name, values in samples.items()}


def summarise(samples: dict[str, list[float]]) -> list[Row]:
    """A row for every caller."""
    facts: Row = {
        "benchmark": "client-overhead",
        "system": "twinshot",
        "gpu": gpu_name(torch.device("cpu")),
        "bytes": len(IMAGE),
        "versions": f"twinshot {version('twinshot')}, httpx2 {version('httpx2')}, "
        f"python {platform.python_version()}",
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    rows = [facts | {"part": name, **quantiles(values)} for name, values in samples.items()]
    return [row | {"over_bytes_ms": round(row["median_ms"] - rows[0]["median_ms"], 2)} for row in rows]


def print_table(rows: Sequence[Row]) -> None:
    """The rows for people."""
    first = rows[0]
    print(f"{first['versions']}, {first['gpu']}, commit {first['commit']}")
    print(f"answers of {first['bytes']} bytes, {first['samples']} calls of each")
    print(f"\n{'caller':<14}{'p50 ms':>10}{'p95 ms':>10}{'over bytes':>12}")
    for row in rows:
        print(
            f"{row['part']:<14}{row['median_ms']:>10.2f}{row['p95_ms']:>10.2f}{row['over_bytes_ms']:>12.2f}"
        )
    print()


if __name__ == "__main__":
    main()
