"""The auditor's network: a label for every cell of a picture, from residual blocks (arXiv:1512.03385)."""

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

EMPTY_WEIGHT = 0.05
"""Of cells that hold nothing, in training: most do, and at full weight they would drown the rest."""

_WIDTHS = (32, 64, 144)
_DILATIONS = (1, 2, 2, 1)
"""Of the blocks on the cells' grid: an object is up to eleven cells wide."""


class Labels(NamedTuple):
    """Logits: ``kind`` ``[N, C + 1, 16, 16]``, the last for nothing, and ``color`` ``[N, 11, 16, 16]``."""

    kind: Tensor
    color: Tensor


def _halved(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Half the resolution: convolution, batch normalisation, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, 2, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class _Block(nn.Module):
    """Two convolutions, the first of them dilated, around a skip connection."""

    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, width, H, W]`` to the same shape."""
        inner = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(x + self.second_norm(self.second(inner)))


class CellLabeller(nn.Module):
    """Pictures ``[N, 3, 128, 128]`` in 0..1 -> :class:`Labels`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        fine, middle, coarse = _WIDTHS
        self.body = nn.Sequential(
            _halved(3, fine, 5),
            _halved(fine, middle, 3),
            _Block(middle),
            _halved(middle, coarse, 3),
            *(_Block(coarse, dilation) for dilation in _DILATIONS),
        )
        self.kind = nn.Conv2d(coarse, classes + 1, 1)
        self.color = nn.Conv2d(coarse, OWN_COLOR + 1, 1)

    def forward(self, pictures: Tensor) -> Labels:
        """Label the cells."""
        features = self.body(pictures * 4 - 2)
        return Labels(self.kind(features), self.color(features))
