"""Replays one CUDA graph a stage and shape, captured before the engine is ready.

A graph has fixed inputs, which a call copies its arguments into, and a fixed output. All graphs share one
memory pool and one set of input buffers, since stages run one after another: the pool is as large as the
widest stage, not as all of them together. A shape that was not captured is an error: nothing compiles,
captures or allocates device memory while requests are served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, TypeVar

import torch
from torch import Tensor

from twinshot_engine.backends.stages import Advertised, largest_first
from twinshot_engine.families.model import Model, Pass
from twinshot_engine.graphs import CapturedStage, Inputs
from twinshot_engine.text import Caption
from twinshot_engine.types import Size

_Inputs = tuple[torch.Size, ...]
_Output = TypeVar("_Output", Tensor, tuple[Tensor, ...])


class FusedBackend:
    """See :class:`~twinshot_engine.backends.stages.Stages`."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._device = model.placement.device
        self._inputs = Inputs(self._device)
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._encoders: dict[torch.Size, CapturedStage[Caption]] = {}
        self._denoisers: dict[_Inputs, CapturedStage[Tensor]] = {}
        self._decoders: dict[torch.Size, CapturedStage[Tensor]] = {}
        self._batch_sizes: tuple[int, ...] = (1,)

    def prepare(self, advertised: Advertised) -> Iterator[tuple[str, float]]:
        """Capture every stage for every shape, the largest first so that the pool grows once."""
        self._batch_sizes = tuple(sorted(advertised.batch_sizes, reverse=True))
        torch.cuda.empty_cache()  # what loading held for a moment is of no use to another stream
        work = self._work(advertised.sizes, sorted(advertised.tokens, reverse=True))
        for done, (name, capture) in enumerate(work):
            yield name, done / len(work)
            capture()

    def _work(self, sizes: Sequence[Size], tokens: Sequence[int]) -> list[tuple[str, Callable[[], None]]]:
        """What to capture, with a name for people."""
        largest_first = sorted(sizes, key=lambda size: size[0] * size[1], reverse=True)
        images = list(product(largest_first, self._batch_sizes))
        work: list[tuple[str, Callable[[], None]]] = [
            (f"decoder {size[0]}x{size[1]}", partial(self._capture_decoder, size, batch))
            for size, batch in images
        ]
        for (size, batch), count in product(images, tokens):
            name = f"transformer {size[0]}x{size[1]}, {count} tokens"
            work.append((name, partial(self._capture_denoiser, size, batch, count)))
        for count, batch in product(tokens, self._batch_sizes):
            work.append((f"text encoder, {count} tokens", partial(self._capture_encoder, count, batch)))
        return work

    def encode(self, ids: Tensor, length: Tensor) -> Caption:
        """Replay the encoder of this bucket."""
        return tuple(tensor.clone() for tensor in self._encoders[ids.shape](ids, length))

    def denoise(self, latents: Tensor, fresh: Tensor | None, caption: Caption, constants: Pass) -> Tensor:
        """Replay the transformer of this shape."""
        stage = self._denoisers[_shapes(latents, caption)]
        return stage(latents, fresh, constants.modulation, constants.weights, *caption)

    def decode(self, latents: Tensor) -> Tensor:
        """Replay the decoder of this shape."""
        return self._decoders[latents.shape](latents)

    def batches(self, count: int) -> list[int]:
        """Take the largest captured batch that fits, again and again."""
        return largest_first(count, self._batch_sizes)

    def text_batches(self, count: int) -> list[int]:
        """As images."""
        return self.batches(count)

    def _capture_encoder(self, tokens: int, batch: int) -> None:
        ids = self._inputs.like("ids", (batch, tokens), torch.int64)
        length = self._inputs.like("length", (batch,), torch.int64)
        length.fill_(tokens)
        self._encoders[ids.shape] = self._capture(self._model.encode, (ids, length))

    def _capture_denoiser(self, size: Size, batch: int, tokens: int) -> None:
        constants = next(iter(self._model.passes.values()))[0]
        shape = (batch, *self._model.latent_shape(*size))
        latents, fresh = (self._inputs.like(name, shape) for name in ("latents", "fresh"))
        modulation = self._inputs.like(
            "modulation", tuple(constants.modulation.shape), constants.modulation.dtype
        )
        weights = self._inputs.like("weights", tuple(constants.weights.shape))
        caption = tuple(
            self._inputs.like(f"caption {number}", (batch, *like.shape[1:]), like.dtype)
            for number, like in enumerate(self._model.caption_like(tokens))
        )
        self._denoisers[_shapes(latents, caption)] = self._capture(
            self._denoise, (latents, fresh, modulation, weights, *caption)
        )

    def _denoise(
        self, latents: Tensor, fresh: Tensor, modulation: Tensor, weights: Tensor, *caption: Tensor
    ) -> Tensor:
        return self._model.denoise(latents, fresh, caption, modulation, weights)

    def _capture_decoder(self, size: Size, batch: int) -> None:
        latents = self._inputs.like("latents", (batch, *self._model.latent_shape(*size)))
        self._decoders[latents.shape] = self._capture(self._model.decode, (latents,))

    def _capture(
        self, function: Callable[..., _Output], inputs: tuple[Tensor, ...]
    ) -> CapturedStage[_Output]:
        return CapturedStage(function, inputs, self._pool, self._stream)


def _shapes(latents: Tensor, caption: Caption) -> _Inputs:
    return latents.shape, *(tensor.shape for tensor in caption)
