"""From an ONNX file to an engine: parse, name shapes and GPUs, build, and write the plan as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from twinshot_engine.errors import EngineFilesError
from twinshot_engine.files import one_line
from twinshot_engine.tensorrt.disk import write_whole
from twinshot_engine.tensorrt.library import Library
from twinshot_engine.tensorrt.manifest import TensorFacts

Report = Callable[[str, float], None]
Shapes = Mapping[str, tuple[int, ...]]

TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""TensorRT's names of types that inputs and outputs may have, to torch's."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Shapes of every input that an engine is made for: from ``least`` to ``most``, fastest at ``usual``."""

    least: Shapes
    usual: Shapes
    most: Shapes


@dataclass(frozen=True, slots=True)
class Order:
    """What to build.

    Attributes:
        graph: the ONNX file.
        profiles: one or more.
        targets: GPUs as ``sm_89``.
        timing_cache: where TensorRT keeps what it measured; TensorRT for RTX measures nothing.
    """

    graph: Path
    profiles: Sequence[Profile]
    targets: Sequence[str]
    timing_cache: Path


def build_engine(
    library: Library, order: Order, out: BinaryIO, report: Report
) -> tuple[tuple[TensorFacts, ...], tuple[TensorFacts, ...]]:
    """Build an engine and write it to ``out``.

    Returns:
        Its inputs and outputs.

    Raises:
        EngineFilesError: the library refuses the graph or a target, or cannot build it.
        OSError: it cannot be written.
    """
    api, log = library.api, make_log(library)
    builder = api.Builder(log)
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(api, network, log, order.graph)
    _let_attention_decompose(api, network)
    config = builder.create_builder_config()
    _set_targets(library, config, order.targets)
    for profile in order.profiles:
        config.add_optimization_profile(_make_profile(builder, network, profile))
    if hasattr(api.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(api.BuilderFlag.REQUIRE_USER_ALLOCATION)  # so that a CUDA graph can hold it
    stopped: list[BaseException] = []
    config.progress_monitor = _make_monitor(api, report, stopped)
    cache = _load_timings(library, config, order.timing_cache)
    _build(builder, network, config, _make_writer(library, out, stopped), stopped, log)
    if cache is not None:
        write_whole(order.timing_cache, bytes(cache.serialize()))
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return tuple(_facts(each, order.profiles) for each in inputs), tuple(_facts(each) for each in outputs)


def make_log(library: Library) -> Any:
    """A logger for the library that keeps its errors in ``log.errors`` and shows nothing."""
    base: Any = library.api.ILogger

    class Log(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= base.ERROR:
                self.errors.append(one_line(message))

    return Log()


def first_error(log: Any) -> str:
    """The first complaint of the library, as the end of a sentence; others tend to follow from it."""
    return log.errors[0].rstrip(".") if log.errors else "it gave no reason"


def _parse(api: Any, network: Any, log: Any, graph: Path) -> None:
    parser = api.OnnxParser(network, log)
    if parser.parse_from_file(str(graph)):
        return
    failures = [parser.get_error(i) for i in range(parser.num_errors)]
    if failures and failures[0].node_name():
        first = failures[0]
        raise EngineFilesError(
            f"TensorRT has no {first.node_operator()} as in {first.node_name()!r} of '{graph}': "
            f"{one_line(first.desc())}."
        )
    raise EngineFilesError(f"TensorRT cannot read '{graph}': {first_error(log)}.")


def _let_attention_decompose(api: Any, network: Any) -> None:
    """Allow plain kernels for attention where no fused one takes it, such as in fp32 or for wide heads."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == api.LayerType.ATTENTION_INPUT:
            layer.__class__ = api.IAttentionInputLayer
            layer.attention.decomposable = True


def _set_targets(library: Library, config: Any, targets: Sequence[str]) -> None:
    if not library.builds_ahead:
        return
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        capability = library.api.ComputeCapability.__members__[f"SM{target.removeprefix('sm_')}"]
        config.set_compute_capability(capability, index)


def _make_profile(builder: Any, network: Any, profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        made.set_shape(name, profile.least[name], profile.usual[name], profile.most[name])
    return made


def _make_monitor(api: Any, report: Report, stopped: list[BaseException]) -> Any:
    base: Any = api.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        """Tells about the outermost phases alone: the inner ones come and go too fast to read."""

        def __init__(self) -> None:
            base.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self._steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            try:
                if phase in self._steps:
                    report(phase, (step + 1) / self._steps[phase])
            except BaseException as error:  # noqa: BLE001 - as Ctrl-C, it cannot pass through the library
                stopped.append(error)
            return not stopped

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

    return Monitor()


def _make_writer(library: Library, out: BinaryIO, stopped: list[BaseException]) -> Any:
    base: Any = library.api.IStreamWriter

    class Writer(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def write(self, data: bytes) -> int:
            try:
                return out.write(data)
            except OSError as error:  # which cannot pass through the library
                stopped.append(error)
                return 0

    return Writer()


def _load_timings(library: Library, config: Any, path: Path) -> Any | None:
    if library.builds_ahead:
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _build(
    builder: Any, network: Any, config: Any, writer: Any, stopped: list[BaseException], log: Any
) -> None:
    done = builder.build_serialized_network_to_stream(network, config, writer)
    if stopped:
        raise stopped[0]
    if not done:
        raise EngineFilesError(f"TensorRT cannot build this engine: {first_error(log)}.")


def _facts(tensor: Any, profiles: Sequence[Profile] = ()) -> TensorFacts:
    name = str(tensor.name)
    shapes = tuple(_spans(name, profiles))
    return TensorFacts(name, TYPES[tensor.dtype.name], tuple(tensor.shape), shapes)


def _spans(name: str, profiles: Sequence[Profile]) -> Iterator[tuple[tuple[int, ...], ...]]:
    for profile in profiles:
        yield profile.least[name], profile.usual[name], profile.most[name]
