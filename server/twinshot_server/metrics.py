"""Every Prometheus metric of the server, in one registry that belongs to one application."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
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

if TYPE_CHECKING:
    from twinshot_engine.types import EngineInfo, Size, StageTimes
    from twinshot_server.scheduling.dispatcher import Dispatcher

SECONDS = (
    *(0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1),
    *(0.15, 0.25, 0.5, 1, 2.5, 5, 10),
)
"""Histogram bounds fine enough for a p99 of some milliseconds."""

_LAG_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.5)
_BATCHES = (1, 2, 4, 8, 16, 32)
_BUILD = ("version", "torch", "family", "device", "precision")
_OUTCOMES = {
    200: "ok",
    401: "denied",
    403: "denied",
    429: "rejected",
    499: "cancelled",
    503: "unavailable",
    504: "timeout",
}


class Metrics:
    """What the server counts; `registry` is what `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._model = "none"
        self._sizes: set[tuple[int, ...]] = set()
        self._requests = self._counter(
            "requests", "Requests for pictures, by how they ended.", "model", "outcome", "key"
        )
        text = "Time from request to answer, of successful requests."
        self._duration = self._histogram("request_duration_seconds", text, SECONDS, "model")
        text = "Time a picture spent in one stage."
        self._stage = self._histogram("stage_duration_seconds", text, SECONDS, "model", "stage")
        self._images = self._counter("images", "Pictures drawn and encoded.", "model", "size")
        self._dropped = self._counter(
            "dropped_images", "Pictures that nobody wanted any more, by the gate that dropped them.", "gate"
        )
        self._batch = self._histogram("batch_size", "Pictures that were drawn together.", _BATCHES, "model")
        self._sent = self._counter("response_bytes", "Bytes of answers to requests for pictures.")
        self._lookups = self._counter(
            "text_cache_lookups", "Prompts that were (hit) or were not (miss) encoded already.", "result"
        )
        self._restarts = self._counter("engine_restarts", "Engines that ended and were replaced.", "reason")
        self._lag = self._histogram(
            "event_loop_lag_seconds", "How late the event loop runs what is due.", _LAG_SECONDS
        )
        self.realtime_sessions = self._gauge("realtime_sessions", "Open connections to /realtime.")
        self.realtime_dropped = self._counter("realtime_dropped", "Frames that a newer one superseded.")
        self._start = self._gauge(
            "engine_start_seconds", "Time of each stage of an engine's last start.", "stage"
        )
        self._load = self._gauge("model_load_seconds", "Time the model took to load.", "model")
        self._build = self._gauge("build_info", "Always 1; the labels tell what runs.", *_BUILD)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def watch(self, dispatcher: Dispatcher, *, vllm_names: bool) -> None:
        """Show the dispatcher's state, as it is whenever the metrics are read."""
        self._read("requests_waiting", "Pictures that wait for an engine.", lambda: dispatcher.waiting)
        self._read("requests_running", "Pictures being drawn or encoded.", lambda: dispatcher.running)
        self._read(
            "predicted_wait_seconds",
            "When an engine would begin with a request that came now.",
            lambda: dispatcher.predicted_wait,
        )
        self._read("engines_available", "Engines that can draw.", lambda: len(dispatcher.engines.available))
        memory = self._gauge("gpu_memory_bytes", "Memory of the engines on their GPUs.", "state")
        for place, state in enumerate(("allocated", "reserved")):
            memory.labels(state).set_function(_gpu_bytes(dispatcher, place))
        if vllm_names:
            dispatcher.ready.add_done_callback(lambda _ready: self._show_vllms_names(dispatcher))

    def describe_engine(self, info: EngineInfo) -> None:
        """Name the loaded model in every later sample."""
        self._model, self._sizes = info.name, {tuple(size) for size in info.sizes}
        self._load.labels(info.name).set(info.load_seconds)
        self._build.labels(__version__, info.torch_version, info.family, info.device, info.precision).set(1)

    def count_request(self, status: int, seconds: float, key: str, sent: int = 0) -> None:
        """One request for pictures ended with this HTTP status, or the one it would have had."""
        outcome = _OUTCOMES.get(status, "invalid" if status < 500 else "error")
        self._requests.labels(self._model, outcome, key).inc()
        self._sent.inc(sent)
        if outcome == "ok":
            self._duration.labels(self._model).observe(seconds)

    def count_batch(self, size: int) -> None:
        """An engine drew this many pictures together."""
        self._batch.labels(self._model).observe(size)

    def count_image(self, size: Size, times: StageTimes) -> None:
        """One picture was drawn and encoded; `times` includes the encoding."""
        label = f"{size[0]}x{size[1]}" if size in self._sizes else "other"
        self._images.labels(self._model, label).inc()
        for stage, seconds in asdict(times).items():
            self._stage.labels(self._model, stage).observe(seconds)

    def count_lookups(self, hits: int, misses: int) -> None:
        """So many prompts were, and were not, found encoded."""
        self._lookups.labels("hit").inc(hits)
        self._lookups.labels("miss").inc(misses)

    def count_dropped(self, gate: str) -> None:
        """A picture was dropped at the gate `queue`, `draw` or `encode`."""
        self._dropped.labels(gate).inc()

    def count_restart(self, reason: str) -> None:
        """An engine ended: `exit` or `hang`."""
        self._restarts.labels(reason).inc()

    def note_start(self, seconds: Mapping[str, float]) -> None:
        """An engine is ready, and these are the stages of its start."""
        for stage, each in seconds.items():
            self._start.labels(stage).set(each)

    def note_lag(self, seconds: float) -> None:
        """The event loop ran something this late."""
        self._lag.observe(seconds)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"twinshot_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, bounds: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"twinshot_{name}", text, labels, buckets=bounds, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"twinshot_{name}", text, labels, registry=self.registry)

    def _read(self, name: str, text: str, value: Callable[[], float]) -> None:
        self._gauge(name, text).set_function(value)

    def _show_vllms_names(self, dispatcher: Dispatcher) -> None:
        for state in ("waiting", "running"):
            name, text = f"vllm:num_requests_{state}", f"The same as twinshot_requests_{state}."
            gauge = Gauge(name, text, ["model_name"], registry=self.registry)
            gauge.labels(self._model).set_function(partial(getattr, dispatcher, state))


def _gpu_bytes(dispatcher: Dispatcher, place: int) -> Callable[[], float]:
    return lambda: sum(engine.gpu_bytes[place] for engine in dispatcher.engines if engine.gpu_bytes)
