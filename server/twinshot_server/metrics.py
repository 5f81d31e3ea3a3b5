"""Every Prometheus metric of the server, in one registry that belongs to one application."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from twinshot_server import __version__
from twinshot_server.dispatcher import Dispatcher
from twinshot_server.request_queue import Drawn

if TYPE_CHECKING:
    from twinshot_engine.engine import EngineInfo
    from twinshot_engine.types import StageTimes

SECONDS = (
    0.001,
    0.002,
    0.005,
    0.01,
    0.015,
    0.02,
    0.03,
    0.04,
    0.05,
    0.075,
    0.1,
    0.15,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
)
"""Histogram bounds fine enough for a p99 of some milliseconds."""

_OUTCOMES = {200: "ok", 429: "rejected", 499: "cancelled", 503: "unavailable"}


class Metrics:
    """What the server counts; `registry` is what `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._model = "none"
        self._requests = Counter(
            "twinshot_requests",
            "Requests for pictures, by how they ended.",
            ["model", "outcome"],
            registry=self.registry,
        )
        self._duration = self._histogram(
            "request_duration", "Time from request to answer, of successful requests.", ["model"]
        )
        self._stage = self._histogram(
            "stage_duration", "Time a request spent in one stage.", ["model", "stage"]
        )
        self._images = Counter(
            "twinshot_images", "Pictures drawn and encoded.", ["model", "size"], registry=self.registry
        )
        self._batch = Histogram(
            "twinshot_batch_size",
            "Requests that shared a forward pass.",
            ["model"],
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self._load = Gauge(
            "twinshot_model_load_seconds", "Time the model took to load.", ["model"], registry=self.registry
        )
        self._build = Gauge(
            "twinshot_build_info",
            "Always 1; the labels tell what runs.",
            ["version", "torch", "family", "device", "precision"],
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def watch(self, dispatcher: Dispatcher) -> None:
        """Show the dispatcher's queue, as it is whenever the metrics are read."""
        self._gauge("requests_waiting", "Requests that wait for the engine.").set_function(
            lambda: dispatcher.waiting
        )
        self._gauge("requests_running", "Requests being drawn.").set_function(lambda: dispatcher.running)

    def describe_engine(self, info: EngineInfo) -> None:
        """Name the loaded model in every later sample."""
        self._model = info.name
        self._load.labels(info.name).set(info.load_seconds)
        self._build.labels(__version__, info.torch_version, info.family, info.device, info.precision).set(1)

    def count_request(self, status: int, seconds: float) -> None:
        """One request for a picture ended with this HTTP status."""
        outcome = _OUTCOMES.get(status, "invalid" if status < 500 else "error")
        self._requests.labels(self._model, outcome).inc()
        if outcome == "ok":
            self._duration.labels(self._model).observe(seconds)

    def count_batch(self, size: int) -> None:
        """The engine drew this many requests together."""
        self._batch.labels(self._model).observe(size)

    def count_image(self, drawn: Drawn, times: StageTimes) -> None:
        """One picture was drawn and encoded; `times` includes the encoding."""
        height, width, _ = drawn.pixels.shape
        self._images.labels(self._model, f"{width}x{height}").inc()
        for stage, seconds in asdict(times).items():
            self._stage.labels(self._model, stage).observe(seconds)

    def _histogram(self, name: str, text: str, labels: list[str]) -> Histogram:
        return Histogram(f"twinshot_{name}_seconds", text, labels, buckets=SECONDS, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"twinshot_{name}", text, registry=self.registry)
