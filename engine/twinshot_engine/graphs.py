"""Capture a function of fixed shapes in a CUDA graph, and replay it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

_Output = TypeVar("_Output", Tensor, tuple[Tensor, ...])

_WARM_RUNS = 2
"""Before capture: kernels compile, libraries choose algorithms, and the second run proves them chosen."""


class Inputs:
    """Input buffers: graphs run one after another, so all that want the same name and type share one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def like(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """View the buffer of that name and type; one that is too small is left to those who view it already.

        A buffer holds zeros until somebody writes to it.
        """
        count = math.prod(shape)
        held = self._buffers.get((name, dtype))
        if held is None or len(held) < count:
            held = self._buffers[name, dtype] = torch.zeros(count, dtype=dtype, device=self._device)
        return held[:count].view(shape)


class CapturedStage(Generic[_Output]):
    """A captured function. Calling it copies the arguments in, replays, and returns the fixed output.

    Args:
        function: without host synchronisation; it is run on ``inputs`` before it is captured.
        inputs: the fixed buffers.
        pool: memory that graphs share.
        stream: where to run and capture. All graphs should name the same one: cuBLAS keeps 32 MiB for each
            stream it has ever seen.
    """

    def __init__(
        self,
        function: Callable[..., _Output],
        inputs: tuple[Tensor, ...],
        pool: Any,
        stream: torch.cuda.Stream,
    ) -> None:
        self._inputs = inputs
        self._graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(inputs[0].device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(_WARM_RUNS):
                function(*inputs)
        current.wait_stream(stream)
        # What the warm runs used would stay beside the pool's own memory.
        torch.cuda.empty_cache()
        with torch.cuda.graph(self._graph, pool=pool, stream=stream):
            self._output: _Output = function(*inputs)

    def __call__(self, *arguments: Tensor | None) -> _Output:
        """Replay with ``arguments`` in the shapes of capture; None leaves what the buffer holds."""
        for buffer, argument in zip(self._inputs, arguments, strict=True):
            if argument is not None:
                buffer.copy_(argument, non_blocking=True)
        self._graph.replay()
        return self._output
