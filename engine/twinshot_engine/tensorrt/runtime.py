"""A built engine on the GPU: one context a shape, with fixed buffers, and memory that all contexts share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinshot_engine.errors import EngineFilesError
from twinshot_engine.files import quoted
from twinshot_engine.tensorrt.builder import TYPES, first_error, make_log
from twinshot_engine.tensorrt.library import Library
from twinshot_engine.tensorrt.manifest import EngineFacts, TensorFacts, verify_engine

Shapes = Sequence[tuple[int, ...]]


class JitCache:
    """What TensorRT for RTX compiled for this GPU, kept beside the engines where that can be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cache: Any = None

    def join(self, config: Any) -> None:
        """Let a runtime configuration use it."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._path.is_file():
                self._cache.deserialize(self._path.read_bytes())
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Keep it for the next start; a folder that cannot be written to is fine."""
        if self._cache is None:
            return
        try:
            self._path.write_bytes(bytes(self._cache.serialize()))
        except OSError:
            self._path.unlink(missing_ok=True)


class LoadedEngine:
    """An engine that was verified and loaded.

    Args:
        library: that built it.
        folder: where it is.
        facts: what its manifest says of it.
        jit: of TensorRT for RTX.

    Raises:
        EngineFilesError: the file is not the one that was built, or the library refuses it.
    """

    def __init__(self, library: Library, folder: Path, facts: EngineFacts, jit: JitCache) -> None:
        self.facts = facts
        self._library, self._jit = library, jit
        self._log = make_log(library)
        self._runtime = library.api.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(verify_engine(folder, facts))
        path = quoted(folder / facts.file)
        if self._engine is None:
            raise EngineFilesError(f"{library.name} cannot load {path}: {first_error(self._log)}.")
        for tensor in (*facts.inputs, *facts.outputs):
            kind = TYPES.get(self._engine.get_tensor_dtype(tensor.name).name)
            if kind != tensor.type:
                raise EngineFilesError(
                    f"{path} has {tensor.name!r} as {kind}, not as {tensor.type}: build again."
                )

    @property
    def scratch_bytes(self) -> int:
        """Memory of a context beside its buffers; contexts that run one after another can share it."""
        return int(self._engine.device_memory_size_v2)

    def context(self, inputs: Sequence[Tensor], scratch: Tensor) -> Context:
        """Make a context that reads these buffers, in the order of the facts.

        Args:
            inputs: on the device, of the shapes that it is to compute.
            scratch: at least :attr:`scratch_bytes` bytes.

        Raises:
            EngineFilesError: no profile holds the shapes, or the library refuses them.
        """
        context = self._create()
        profile = find_profile(self.facts, [tuple(tensor.shape) for tensor in inputs])
        context.set_device_memory(scratch.data_ptr(), scratch.nbytes)
        done = [context.set_optimization_profile_async(profile, _stream(scratch))]
        for facts, tensor in zip(self.facts.inputs, inputs, strict=True):
            done.append(context.set_input_shape(facts.name, tuple(tensor.shape)))
        outputs = [self._make_output(context, facts, scratch.device) for facts in self.facts.outputs]
        named = zip((*self.facts.inputs, *self.facts.outputs), (*inputs, *outputs), strict=True)
        done += [context.set_tensor_address(facts.name, tensor.data_ptr()) for facts, tensor in named]
        if not all(done):
            raise EngineFilesError(
                f"{self._library.name} refuses the shapes of {self.facts.file!r}: {first_error(self._log)}."
            )
        return Context(context, self._log, tuple(outputs), (*inputs, scratch))

    def _make_output(self, context: Any, facts: TensorFacts, device: torch.device) -> Tensor:
        shape = tuple(max(int(side), 0) for side in context.get_tensor_shape(facts.name))
        return torch.empty(shape, dtype=getattr(torch, facts.type), device=device)

    def _create(self) -> Any:
        api = self._library.api
        managed = api.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self._library.builds_ahead:
            return self._engine.create_execution_context(managed)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(managed)
        config.cuda_graph_strategy = api.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # Kernels for a shape are compiled while warming and not while somebody waits.
        strategies = api.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        self._jit.join(config)
        return self._engine.create_execution_context(config)


class Context:
    """An engine ready to run on fixed buffers."""

    def __init__(self, context: Any, log: Any, outputs: tuple[Tensor, ...], kept: tuple[Tensor, ...]) -> None:
        self._context, self._log, self._outputs = context, log, outputs
        self._kept = kept  # whose addresses the context knows

    def run(self, *_inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs from what the buffers hold, on the current stream.

        Raises:
            RuntimeError: the library refuses.
        """
        if not self._context.execute_async_v3(_stream(self._outputs[0])):
            raise RuntimeError(f"TensorRT did not run: {first_error(self._log)}.")
        return self._outputs


def find_profile(facts: EngineFacts, shapes: Shapes) -> int:
    """Choose the first profile that holds these shapes of the inputs.

    Raises:
        EngineFilesError: none does.
    """
    for index in range(len(facts.inputs[0].profiles)):
        if all(_holds(tensor, index, shape) for tensor, shape in zip(facts.inputs, shapes, strict=True)):
            return index
    wanted = ", ".join(
        f"{tensor.name} {list(shape)}" for tensor, shape in zip(facts.inputs, shapes, strict=True)
    )
    raise EngineFilesError(
        f"{facts.file!r} has no profile for {wanted}: build one for that batch and length."
    )


def _holds(tensor: TensorFacts, index: int, shape: tuple[int, ...]) -> bool:
    least, _, most = tensor.profiles[index]
    sides = zip(least, shape, most, strict=True)
    return len(shape) == len(least) and all(low <= side <= high for low, side, high in sides)


def _stream(tensor: Tensor) -> int:
    """The handle of the stream that is current on a tensor's device."""
    return int(torch.cuda.current_stream(tensor.device).cuda_stream) if tensor.is_cuda else 0
