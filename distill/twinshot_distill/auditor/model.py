"""The auditor's network: a label for every cell of a picture, by ConvNeXt's blocks (arXiv:2201.03545)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from twinshot_distill.world.vocabulary import COLORS

SIDE = 128
CELLS = 16
"""Cells along a side; each is 8 pixels wide."""

OWN_COLOR = len(COLORS)
"""The label of a thing in its own colours; those before it are the ten names in order."""

_WIDTHS = (64, 144)
_DEPTHS = (2, 6)
_KERNEL = 7
_EXPANSION = 3


class Labels(NamedTuple):
    """Logits: ``kind`` ``[N, C + 1, 16, 16]``, the last for nothing, and ``color`` ``[N, 11, 16, 16]``."""

    kind: Tensor
    color: Tensor


class _Block(nn.Module):
    """A depthwise convolution over space and an MLP over channels, around a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.space = nn.Conv2d(width, width, _KERNEL, padding=_KERNEL // 2, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.widen = nn.Conv2d(width, _EXPANSION * width, 1)
        self.narrow = nn.Conv2d(_EXPANSION * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, width, H, W]`` to the same shape."""
        mixed: Tensor = self.narrow(torch.nn.functional.gelu(self.widen(self.norm(self.space(x)))))
        return x + mixed


class CellLabeller(nn.Module):
    """Pictures ``[N, 3, 128, 128]`` in 0..1 -> :class:`Labels`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        fine, coarse = _WIDTHS
        self.stem = nn.Sequential(nn.Conv2d(3, fine, 4, stride=4), nn.GroupNorm(1, fine))
        self.fine = nn.Sequential(*(_Block(fine) for _ in range(_DEPTHS[0])))
        self.down = nn.Conv2d(fine, coarse, 2, stride=2)
        self.coarse = nn.Sequential(*(_Block(coarse) for _ in range(_DEPTHS[1])), nn.GroupNorm(1, coarse))
        self.kind = nn.Conv2d(coarse, classes + 1, 1)
        self.color = nn.Conv2d(coarse, OWN_COLOR + 1, 1)

    def forward(self, pictures: Tensor) -> Labels:
        """Label the cells."""
        features = self.coarse(self.down(self.fine(self.stem(pictures * 4 - 2))))
        return Labels(self.kind(features), self.color(features))
