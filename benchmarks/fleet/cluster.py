"""Ray Serve on this machine, as `serve run` starts it from `deploy/ray/local.yaml`.

Needs a Python with the extra `[ray]`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import yaml

from fleet.service import free_port
from soak.servers import eventually

ROOT = Path(__file__).parents[2]
MODEL = "miniature"
STUB_ARGUMENTS = {"engine": "twinshot_server.stub_engine:load_stub"}
_PROGRAM = shutil.which("serve", path=str(Path(sys.executable).parent))
_MODES = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
_LIMITS = {
    # HAProxy sees within a second that a replica leaves; Ray's half minute is for slower balancers.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    # On a machine that others use too, a proxy may need longer than 5 s to start.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}
_AUTOSCALED = {
    "num_replicas": "auto",
    "autoscaling_config": {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 2,
        "downscale_delay_s": 5,
    },
}
_PATIENCE = 400


@dataclass
class Cluster:
    """What runs; `url` is the gateway's, and `url/miniature` the model's own."""

    url: str
    folder: Path
    arguments: dict[str, Any]
    environment: dict[str, str]

    def scale(self, replicas: int, seconds: float = _PATIENCE) -> None:
        """Have so many replicas of the model; returns when there are."""
        command = [str(_PROGRAM), "run", "--address", "auto", "--non-blocking", str(self.write(replicas))]
        subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=60)
        eventually(lambda: len(self.replicas()) == replicas, seconds)

    def replicas(self) -> list[int]:
        """The process numbers of the model's replicas."""
        return self._processes(f"ray::ServeReplica:{MODEL}:")

    def kill_replica(self) -> int:
        """SIGKILL one of them."""
        pid = self.replicas()[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def _processes(self, title: str) -> list[int]:
        """Those of this cluster, by their titles; workers inherit the folder's name."""
        mark = f"RAY_TMPDIR={self.environment['RAY_TMPDIR']}\0".encode()
        found = []
        for path in Path("/proc").iterdir():
            try:
                if path.name.isdecimal() and (path / "cmdline").read_bytes().startswith(title.encode()):
                    found += [int(path.name)] if mark in (path / "environ").read_bytes() else []
            except OSError:  # it has ended
                continue
        return sorted(found)

    def write(self, replicas: int | None) -> Path:
        """Put its configuration, with so many replicas, into a file."""
        port = int(self.url.rpartition(":")[2])
        path = self.folder / "cluster.yaml"
        path.write_text(json.dumps(configuration(port, replicas, self.arguments)))
        return path


def configuration(port: int, replicas: int | None, arguments: dict[str, Any]) -> dict[str, Any]:
    """What `deploy/ray/local.yaml` says, at another port and with other arguments of the model.

    None are as many replicas as requests need, two at most.
    """
    found: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "ray" / "local.yaml").read_text())
    model, gateway = found["applications"]
    found["http_options"]["port"] = port
    model["args"] |= arguments
    model["deployments"][0] |= {"num_replicas": replicas} if replicas else _AUTOSCALED
    gateway["args"]["address"] = f"http://127.0.0.1:{port}"
    return found


@contextmanager
def cluster(
    folder: Path, arguments: dict[str, Any], replicas: int | None, **environment: str
) -> Iterator[Cluster]:
    """A cluster of one machine, whose model is ready. Raises FileNotFoundError without the extra `[ray]`."""
    if _PROGRAM is None:
        raise FileNotFoundError("there is no `serve` beside this Python: install twinshot-server[ray]")
    # Ray's sockets lie in it, whose paths may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as temporary:
        own = {"RAY_TMPDIR": temporary, "RAY_USAGE_STATS_ENABLED": "0"} | _MODES | _LIMITS | environment
        made = Cluster(f"http://127.0.0.1:{free_port()}", folder, arguments, os.environ | own)
        with (folder / "ray.log").open("w") as log:
            command = [_PROGRAM, "run", str(made.write(replicas))]
            process = subprocess.Popen(command, env=made.environment, stdout=log, stderr=log)
        try:
            eventually(lambda: _is_ready(made, process), _PATIENCE)
            eventually(lambda: len(made.replicas()) == (replicas or 1), _PATIENCE)
            yield made
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def _is_ready(made: Cluster, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"the cluster did not start: {(made.folder / 'ray.log').read_text()[-3000:]}")
    try:
        return all(httpx2.get(f"{made.url}/{path}readyz").status_code == 200 for path in ("", f"{MODEL}/"))
    except httpx2.TransportError:
        return False
