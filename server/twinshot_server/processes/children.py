"""Starting a child, as a process or, for engines that live in this one, as a thread."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from twinshot_server.processes.arena import Arena

_SECRETS = {"TWINSHOT_API_KEYS", "TWINSHOT_ADMIN_KEY"}

Spawn = Callable[[], "Child"]


class Child(Protocol):
    """What runs at the other end of `stream`, the front's end of a socket pair."""

    stream: socket.socket

    def kill(self) -> None:
        """End it at once, where that can be done."""
        ...

    def wait(self, seconds: float) -> str:
        """How it ended, in words; waits `seconds` at most."""
        ...


class ProcessChild:
    """`python -m twinshot_server.processes` with this role; it ends when the front hangs up."""

    def __init__(self, role: str, arena: Arena, options: str) -> None:
        self.stream, theirs = socket.socketpair()
        descriptors = (theirs.fileno(), arena.descriptor)
        command = [sys.executable, "-m", "twinshot_server.processes", role, *map(str, descriptors)]
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [*command, str(arena.slots), options], pass_fds=descriptors, env=_environment()
        )
        theirs.close()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL: a process that hangs hears nothing else."""
        self._process.kill()

    def wait(self, seconds: float) -> str:
        """How it ended; one that does not end by itself is killed."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


class ThreadChild:
    """A function on a thread of this process, which cannot be killed."""

    def __init__(self, name: str, run: Callable[[socket.socket], None]) -> None:
        self.stream, theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._run, args=[run, theirs], name=name, daemon=True)
        self._error: BaseException | None = None
        self._thread.start()

    def _run(self, run: Callable[[socket.socket], None], theirs: socket.socket) -> None:
        with theirs:
            try:
                run(theirs)
            except BaseException as error:  # it is told by `wait`  # noqa: BLE001
                self._error = error

    def kill(self) -> None:
        """Hang up; the thread ends once it notices."""
        with contextlib.suppress(OSError):
            self.stream.shutdown(socket.SHUT_RDWR)

    def wait(self, seconds: float) -> str:
        """How it ended, or that it goes on."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            return "does not end"
        return repr(self._error) if self._error else "ended"


def _environment() -> dict[str, str]:
    """This process's, but without its secrets, and without the working directory on the module path."""
    kept = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    return kept | {"PYTHONSAFEPATH": "1"}
