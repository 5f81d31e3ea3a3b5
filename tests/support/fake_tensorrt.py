"""A small fake of TensorRT's Python interface, as far as twinshot uses it; onnxruntime does the work.

It takes the place of the module ``tensorrt``. Its "plan" holds the ONNX model it was built from, and its
engines read and write the memory whose addresses they are told, like the real ones.
"""

import base64
import ctypes
import enum
import json
from typing import Any

import numpy as np
import onnx
import onnxruntime

__version__ = "10.14.1.0"

DataType = enum.Enum("DataType", "FLOAT HALF BF16 INT32 INT64 UINT8 BOOL")
LayerType = enum.Enum("LayerType", "ATTENTION_INPUT OTHER")
ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", "STATIC USER_MANAGED")

SCRATCH_BYTES = 4096
_TYPES = {1: DataType.FLOAT, 7: DataType.INT64, 2: DataType.UINT8, 10: DataType.HALF, 16: DataType.BF16}
_NUMPY = {DataType.FLOAT: np.float32, DataType.INT64: np.int64, DataType.UINT8: np.uint8}

refused: set[str] = set()
"""Calls that shall fail: ``parse``, ``build``, ``deserialize``, ``shape``, ``execute``."""


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag:
    pass


class ILogger:
    ERROR = 1

    def log(self, severity: int, message: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    pass


class IStreamWriter:
    pass


class Tensor:
    def __init__(self, value: Any) -> None:
        kind = value.type.tensor_type
        self.name, self.dtype = value.name, _TYPES[kind.elem_type]
        self.shape = tuple(side.dim_value or -1 for side in kind.shape.dim)


class Network:
    num_layers = 0

    def load(self, model: onnx.ModelProto) -> None:
        self.model, graph = model, model.graph
        self.inputs, self.outputs = list(map(Tensor, graph.input)), list(map(Tensor, graph.output))

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]


class ParserError:
    def node_name(self) -> str:
        return "node_strange"

    def node_operator(self) -> str:
        return "Strange"

    def desc(self) -> str:
        return "it is not known"


class OnnxParser:
    num_errors = 1

    def __init__(self, network: Network, log: ILogger) -> None:
        self._network = network

    def parse_from_file(self, path: str) -> bool:
        self._network.load(onnx.load(path))
        return "parse" not in refused

    def get_error(self, index: int) -> ParserError:
        return ParserError()


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, least: Any, usual: Any, most: Any) -> None:
        self.shapes[name] = (least, usual, most)


class TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"timed "


class Config:
    progress_monitor: Any = None

    def __init__(self) -> None:
        self.profiles: list[Profile] = []

    def add_optimization_profile(self, profile: Profile) -> None:
        self.profiles.append(profile)

    def create_timing_cache(self, content: bytes) -> TimingCache:
        return TimingCache(content)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> None:
        self.cache = cache


class Builder:
    def __init__(self, log: ILogger) -> None:
        self._log = log

    def create_network(self, flags: int) -> Network:
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network_to_stream(self, network: Network, config: Config, out: Any) -> bool:
        if "build" in refused:
            self._log.log(ILogger.ERROR, "no kernel\nwas found")
            return False
        config.progress_monitor.phase_start("Building", None, 2)
        config.progress_monitor.phase_start("Inner", "Building", 9)
        config.progress_monitor.step_complete("Inner", 0)
        config.progress_monitor.step_complete("Building", 0)
        config.progress_monitor.phase_finish("Building")
        model = base64.b64encode(network.model.SerializeToString()).decode()
        plan = {"onnx": model, "profiles": [profile.shapes for profile in config.profiles]}
        return bool(out.write(json.dumps(plan).encode()))


class Runtime:
    def __init__(self, log: ILogger) -> None:
        self._log = log

    def deserialize_cuda_engine(self, plan: bytes) -> "Engine | None":
        if "deserialize" in refused:
            self._log.log(ILogger.ERROR, "made for another driver")
            return None
        return Engine(json.loads(plan))


class Engine:
    device_memory_size_v2 = SCRATCH_BYTES

    def __init__(self, plan: dict[str, Any]) -> None:
        self.profiles = plan["profiles"]
        model = base64.b64decode(plan["onnx"])
        self.network = Network()
        self.network.load(onnx.ModelProto.FromString(model))
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.tensors = {each.name: each for each in (*self.network.inputs, *self.network.outputs)}

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.tensors[name].dtype

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> "Context":
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._profile: Any = None

    def set_device_memory(self, address: int, size: int) -> None:
        assert address
        assert size >= SCRATCH_BYTES

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._profile = self._engine.profiles[index]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._profile[name]
        self._shapes[name] = shape
        inside = all(low <= side <= high for low, side, high in zip(least, shape, most, strict=True))
        return inside and "shape" not in refused

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Find out by computing: what real engines know from their inputs' shapes."""
        return tuple(self._compute(self._zeros())[name].shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        feeds = {name: self._memory(name, shape) for name, shape in self._shapes.items()}
        for name, value in self._compute(feeds).items():
            self._memory(name, value.shape)[...] = value
        return "execute" not in refused

    def _compute(self, feeds: dict[str, Any]) -> dict[str, Any]:
        names = [each.name for each in self._engine.network.outputs]
        return dict(zip(names, self._engine.session.run(names, feeds), strict=True))

    def _zeros(self) -> dict[str, Any]:
        return {name: np.zeros(shape, self._numpy(name)) for name, shape in self._shapes.items()}

    def _memory(self, name: str, shape: tuple[int, ...]) -> Any:
        dtype = np.dtype(self._numpy(name))
        size = int(np.prod(shape)) * dtype.itemsize
        raw = (ctypes.c_byte * size).from_address(self._addresses[name])
        return np.frombuffer(raw, dtype).reshape(shape)

    def _numpy(self, name: str) -> Any:
        return _NUMPY[self._engine.tensors[name].dtype]
