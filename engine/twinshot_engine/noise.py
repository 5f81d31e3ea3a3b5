"""Gaussian noise that depends on the seed alone."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Noise:
    """One CPU generator for each image, so that no image depends on its neighbours in the batch.

    The first draw of a seed equals what ``diffusers.ZImagePipeline`` draws for
    ``generator=torch.Generator("cpu").manual_seed(seed)``; later draws continue the same generator.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device) -> None:
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self._shape = shape
        self._device = device

    def draw(self) -> Tensor:
        """Draw standard normal noise for every image: ``[B, *shape]`` fp32 on the device."""
        pinned = self._device.type == "cuda"  # so that the copy does not stop the host
        drawn = torch.empty(len(self._generators), *self._shape, pin_memory=pinned)
        for row, generator in zip(drawn, self._generators, strict=True):
            torch.randn(self._shape, generator=generator, out=row)
        return drawn.to(self._device, non_blocking=True)
