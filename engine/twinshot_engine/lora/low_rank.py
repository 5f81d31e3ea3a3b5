"""The update itself. Source: Hu et al., arXiv 2106.09685."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LowRank:
    """Adds ``scale up down`` to a weight.

    Attributes:
        down: ``[rank, in]``, A.
        up: ``[out, rank]``, B.
        scale: alpha over rank, times the strength that was asked for.
    """

    down: Tensor
    up: Tensor
    scale: float

    def __call__(self, weight: Tensor) -> Tensor:
        """Return the updated weight in fp32, so that it is rounded once, where it is kept.

        Args:
            weight: ``[out, in]``, or of a 1x1 convolution ``[out, in, 1, 1]``.
        """
        up, down = (factor.to(weight.device, torch.float32) for factor in (self.up, self.down))
        return torch.addmm(weight.float().flatten(1), up, down, alpha=self.scale).view(weight.shape)
