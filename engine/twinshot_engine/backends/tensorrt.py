"""Runs engines of TensorRT or TensorRT for RTX, whichever built them.

Each shape has a context of its own with fixed buffers. TensorRT for RTX keeps CUDA graphs of its contexts
itself; contexts of TensorRT are captured here. Contexts run one after another, so they share one piece of
memory, and inputs of the same shape share a buffer, as in the fused backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from twinshot_engine.backends.stages import Advertised, largest_first
from twinshot_engine.errors import EngineFilesError
from twinshot_engine.families.model import Model, Pass
from twinshot_engine.graphs import CapturedStage, Inputs
from twinshot_engine.tensorrt import targets
from twinshot_engine.tensorrt.library import find_library
from twinshot_engine.tensorrt.manifest import DECODER, TEXT, TRANSFORMER, TensorFacts, read_manifest
from twinshot_engine.tensorrt.runtime import Context, JitCache, LoadedEngine
from twinshot_engine.text import Caption
from twinshot_engine.types import Size

_Shapes = tuple[tuple[int, ...], ...]
_Run = Callable[..., tuple[Tensor, ...]]


class TensorRTBackend:
    """See :class:`~twinshot_engine.backends.stages.Stages`.

    Args:
        model: without weights, placed with the folder of engines that were built of it.

    Raises:
        EngineFilesError: an engine is damaged, or its library refuses it.
    """

    def __init__(self, model: Model) -> None:
        folder = model.placement.engines
        if folder is None:
            raise EngineFilesError(
                "Backend 'tensorrt' needs a folder of engines, which 'twinshot build' makes."
            )
        self._model = model
        self._device = model.placement.device
        manifest = read_manifest(folder)
        library = find_library(manifest.library)
        self._captures = self._device.type == "cuda" and not library.builds_ahead
        self._jit = JitCache(folder / f"jit-{targets.current_target(self._device)}.cache")
        sizes = model.card.sizes.listed
        wanted = [(TEXT, None), *product((TRANSFORMER, DECODER), sizes)]
        self._engines = {
            each: LoadedEngine(library, folder, manifest.engine(*each), self._jit) for each in wanted
        }
        most = max(engine.scratch_bytes for engine in self._engines.values())
        self._scratch = torch.empty(max(most, 1), dtype=torch.uint8, device=self._device)
        self._inputs = Inputs(self._device)
        self._stream, self._pool = _stream_and_pool(self._device)
        self._runs: dict[tuple[str, _Shapes], _Run] = {}
        self._batch_sizes: Sequence[int] = (1,)

    def prepare(self, advertised: Advertised) -> Iterator[tuple[str, float]]:
        """Make a context for every stage and shape, and run it, which compiles and captures."""
        self._batch_sizes = sorted(advertised.batch_sizes, reverse=True)
        work = self._work(advertised)
        for done, (name, bind) in enumerate(work):
            yield name, done / len(work)
            bind()
        self._jit.save()

    def encode(self, ids: Tensor, length: Tensor) -> Caption:
        """Run the encoder of this bucket."""
        return tuple(tensor.clone() for tensor in self._run(TEXT, ids, length))

    def denoise(self, latents: Tensor, fresh: Tensor | None, caption: Caption, constants: Pass) -> Tensor:
        """Run the transformer of this shape; without fresh noise the latents, of weight 0, stand in."""
        noise = latents if fresh is None else fresh
        (moved,) = self._run(TRANSFORMER, latents, noise, constants.modulation, constants.weights, *caption)
        return moved

    def decode(self, latents: Tensor) -> Tensor:
        """Run the decoder of this shape."""
        (images,) = self._run(DECODER, latents)
        return images

    def batches(self, count: int) -> list[int]:
        """Take the largest batch that fits, again and again."""
        return largest_first(count, self._batch_sizes)

    def text_batches(self, count: int) -> list[int]:
        """As images."""
        return self.batches(count)

    def _run(self, stage: str, *arguments: Tensor) -> tuple[Tensor, ...]:
        shapes = tuple(tuple(tensor.shape) for tensor in arguments)
        return self._runs[stage, shapes](*arguments)

    def _work(self, advertised: Advertised) -> list[tuple[str, Callable[[], None]]]:
        """What to prepare, with a name for people, the largest first so that others share its buffers."""
        tokens = sorted(advertised.tokens, reverse=True)
        constants = next(iter(self._model.passes.values()))[0]
        fixed = (tuple(constants.modulation.shape), tuple(constants.weights.shape))
        work: list[tuple[str, Callable[[], None]]] = []
        for size, batch in product(advertised.sizes, self._batch_sizes):
            latents = (batch, *self._model.latent_shape(*size))
            name = f"{size[0]}x{size[1]}"
            work.append((f"decoder {name}", partial(self._bind, DECODER, size, (latents,))))
            for count in tokens:
                captions = ((batch, *like.shape[1:]) for like in self._model.caption_like(count))
                bind = partial(self._bind, TRANSFORMER, size, (latents, latents, *fixed, *captions))
                work.append((f"transformer {name}, {count} tokens", bind))
        for count, batch in product(tokens, self._batch_sizes):
            bind = partial(self._bind, TEXT, None, ((batch, count), (batch,)))
            work.append((f"text encoder, {count} tokens", bind))
        return work

    def _bind(self, stage: str, size: Size | None, shapes: _Shapes) -> None:
        engine = self._engines[stage, size]
        inputs = tuple(
            self._inputs.like(facts.name, shape, _dtype(facts))
            for facts, shape in zip(engine.facts.inputs, shapes, strict=True)
        )
        context = engine.context(inputs, self._scratch)
        if self._captures:
            self._runs[stage, shapes] = CapturedStage(context.run, inputs, self._pool, self._stream)
        else:
            self._runs[stage, shapes] = _Uncaptured(context, inputs, self._stream)


class _Uncaptured:
    """Copies arguments into fixed buffers and runs a context, on a stream that may be captured."""

    def __init__(
        self, context: Context, inputs: tuple[Tensor, ...], stream: torch.cuda.Stream | None
    ) -> None:
        self._context, self._inputs, self._stream = context, inputs, stream
        self(*inputs)  # what is compiled for this shape is compiled now

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        if self._stream is None:
            return self._compute(arguments)
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = self._compute(arguments)
        current.wait_stream(self._stream)
        return outputs

    def _compute(self, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for buffer, argument in zip(self._inputs, arguments, strict=True):
            buffer.copy_(argument, non_blocking=True)
        return self._context.run()


def _stream_and_pool(device: torch.device) -> tuple[Any, Any]:
    if device.type != "cuda":
        return None, None
    return torch.cuda.Stream(device), torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]


def _dtype(facts: TensorFacts) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, facts.type)
    return dtype
