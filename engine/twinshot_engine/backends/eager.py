"""Runs the stages operation by operation: on the CPU, and as the reference on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from twinshot_engine.backends.stages import Advertised
from twinshot_engine.families.model import Model, Pass
from twinshot_engine.text import Caption


class EagerBackend:
    """See :class:`~twinshot_engine.backends.stages.Stages`; takes any shape at any time."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._device = model.placement.device

    def prepare(self, _advertised: Advertised) -> Iterator[tuple[str, float]]:
        """Nothing is kept for a shape, so there is nothing to prepare."""
        yield from ()

    def encode(self, ids: Tensor, length: Tensor) -> Caption:
        """Embed prompts."""
        return self._model.encode(ids.to(self._device), length.to(self._device))

    def denoise(self, latents: Tensor, fresh: Tensor | None, caption: Caption, constants: Pass) -> Tensor:
        """Run one pass; without fresh noise the latents stand in, as their weight is 0."""
        noise = latents if fresh is None else fresh
        return self._model.denoise(latents, noise, caption, constants.modulation, constants.weights)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents."""
        return self._model.decode(latents)

    def batches(self, count: int) -> list[int]:
        """Any number of images fits into a pass."""
        return [count]

    def text_batches(self, count: int) -> list[int]:
        """One by one, as on a CPU sharing a pass saves nothing."""
        return [1] * count
