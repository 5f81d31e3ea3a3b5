"""What the server adds to the engine's own time, one client at a time; and what image files cost."""

from __future__ import annotations

import http.client
import json
import re
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from soak.report import Finding, at_most, told
from soak.servers import STUB, Server, running
from twinshot_engine.types import GenerateRequest
from twinshot_server.images import ImageFormat, encode
from twinshot_server.load.summary import quantile
from twinshot_server.stub_engine import StubEngine, StubSettings

_STAGE = re.compile(r"(text|denoise|decode);dur=([\d.]+)")


def measure_overhead(folder: Path, requests: int) -> list[Finding]:
    """Milliseconds of a request that are not the engine's."""
    with running(folder, *STUB) as server:
        findings = list(_overhead(server, "stub 25 ms, 1024x1024", requests, bounded=True))
    with running(folder) as server:
        findings += _overhead(server, "miniature, 256x256", max(10, requests // 10), bounded=False)
    return findings


def _overhead(server: Server, engine: str, requests: int, *, bounded: bool) -> Iterator[Finding]:
    for name in ("jpeg", "png"):
        overheads = list(ask(server.url, name, requests))[requests // 10 :]  # the first warm up
        for part, bound in ((0.5, 6.0), (0.99, 15.0)):
            figure = f"{name}, p{part * 100:.0f}"
            value = quantile(overheads, part) or 0.0
            scenario = f"overhead ({engine})"
            if bounded and name == "jpeg":
                yield at_most(scenario, figure, value, "ms", bound)
            else:
                yield told(scenario, figure, value, "ms")


def ask(url: str, image_format: str, requests: int) -> Iterator[float]:
    """Ask for pictures one by one, on one connection: what each took beyond the engine, in milliseconds."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    headers = {"Accept": f"image/{image_format}", "Content-Type": "application/json"}
    for seed in range(requests):
        body = json.dumps({"prompt": "a red car", "seed": seed})
        started = time.perf_counter()
        connection.request("POST", f"{address.path}/generate", body, headers)
        response = connection.getresponse()
        response.read()
        spent = (time.perf_counter() - started) * 1000
        stages = _STAGE.findall(response.headers["Server-Timing"])
        yield spent - sum(float(milliseconds) for _, milliseconds in stages)
    connection.close()


def measure_encoding(repeats: int) -> list[Finding]:
    """Milliseconds of a 1024x1024 image file on one core."""
    engine = StubEngine(StubSettings())
    engine.warm()
    pixels = engine.generate([GenerateRequest("a", 1, 1024, 1024)]).images[0]
    bounds = {ImageFormat.PNG: 6.0, ImageFormat.JPEG: 4.0}
    findings = []
    for image_format in ImageFormat:
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            encode(pixels, image_format)
            times.append((time.perf_counter() - started) * 1000)
        value, figure = statistics.median(times), f"{image_format.value}, median"
        bound = bounds.get(image_format)
        finding = told("image file 1024x1024", figure, value, "ms")
        findings.append(at_most(finding.scenario, figure, value, "ms", bound) if bound else finding)
    return findings
