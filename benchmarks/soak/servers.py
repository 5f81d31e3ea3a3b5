"""The server as users start it: a process on a free port, and its children."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

PROGRAM = shutil.which("twinshot", path=str(Path(sys.executable).parent)) or "twinshot"
STUB = ("--engine", "twinshot_server.stub_engine:load_stub")


@dataclass
class Server:
    """A running server; `log` is what it wrote to stderr."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def children(self, role: str) -> list[int]:
        """The process numbers of its engines or its encoder."""
        return [
            pid
            for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
            if _parent(pid) == self.process.pid and f"\0{role}\0" in _command(pid)
        ]

    def kill_child(self, role: str) -> int:
        """SIGKILL its (first) child of this role."""
        (pid, *_) = self.children(role)
        os.kill(pid, signal.SIGKILL)
        return pid

    def post(self, prompt: str = "a", **fields: Any) -> httpx2.Response:
        """Ask for a picture."""
        return httpx2.post(f"{self.url}/generate", json={"prompt": prompt, **fields}, timeout=30)

    def open_files(self) -> int:
        """How many files and sockets its front holds open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def health(self, path: str = "/readyz") -> int:
        """The status of one of the health paths."""
        return httpx2.get(self.url + path).status_code

    def metric(self, name: str) -> float:
        """The value of a sample, by its full name with labels; 0 if there is none."""
        lines = httpx2.get(f"{self.url}/metrics").text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(name + " ")), 0.0)

    def memory(self) -> float:
        """Megabytes that its processes hold together; what they share counts once (PSS)."""
        pids = [self.process.pid, *self.children("engine"), *self.children("encoder")]
        return sum(map(_proportional_kilobytes, pids)) / 1024

    def histogram(self, name: str) -> dict[float, float]:
        """Cumulated counts by upper bound of a histogram without labels."""
        pattern = re.compile(rf'{name}_bucket{{le="([^"]+)"}} (\S+)')
        found = pattern.findall(httpx2.get(f"{self.url}/metrics").text)
        return {float(bound): float(count) for bound, count in found}

    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is being drawn."""
        health = httpx2.get(f"{self.url}/health").json()
        return bool(health["waiting"] == health["running"] == 0)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it, and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)

    def end(self) -> None:
        """Make sure that it has ended."""
        self.process.kill()
        self.process.wait(10)
        if self.process.stdout:
            self.process.stdout.close()


def start(log: Path, *options: str, **environment: str) -> Server:
    """Start a server, and wait until it is ready. Raises RuntimeError if it ends before."""
    command = [PROGRAM, "serve", "--port", "0", "--drain-seconds", "0", *options]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TWINSHOT_")}
    with log.open("a") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=clean | environment, cwd=log.parent
        )
    line = process.stdout.readline() if process.stdout else ""
    server = Server(process, line.split()[-1] if line else "", log)
    if not line.startswith("twinshot is ready: open http://127.0.0.1:"):
        server.end()
        raise RuntimeError(f"the server did not start: {log.read_text()}")
    return server


@contextmanager
def running(folder: Path, *options: str, **environment: str) -> Iterator[Server]:
    """A ready server, which does not outlive the test even if that fails."""
    server = start(folder / "server.log", *options, **environment)
    try:
        yield server
    finally:
        server.end()


def eventually(condition: Callable[[], bool], seconds: float = 15) -> None:
    """Wait until something is so."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError("it never came to be")
        time.sleep(0.02)


def exists(pid: int) -> bool:
    """Whether a process is there and not just waiting to be reaped."""
    return _stat(pid)[:1] not in ([], ["Z"])


def _parent(pid: int) -> int:
    return int([*_stat(pid), "0", "0"][1])


def _stat(pid: int) -> list[str]:
    """State, parent and so on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _proportional_kilobytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
