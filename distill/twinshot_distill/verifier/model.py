"""The detector: a small CNN that says which objects are in a picture, where, and in which colour.

A centre-point detector in the manner of CenterNet (Zhou et al. 2019, arXiv:1904.07850): one class
heatmap at stride 8, and beside it a colour head and a geometry head read at the heatmap's peaks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from twinshot_distill.world.vocabulary import COLORS

INPUT_SIDE = 128
STRIDE = 8
GRID = INPUT_SIDE // STRIDE
NATURAL = "natural"
COLOR_NAMES: tuple[str, ...] = (*COLORS, NATURAL)
"""What the colour head tells apart: the ten names, and a sprite left as it was drawn."""

_PRIOR_LOGIT = -4.6  # a heatmap that starts at 1 %, or the negatives swamp the first steps


class Maps(NamedTuple):
    """The detector's output for N pictures of C classes, on a 16 x 16 grid.

    `heat` [N, C, 16, 16] and `color` [N, 11, 16, 16] are logits; `geometry` [N, 3, 16, 16] holds the
    centre's offset from the cell's middle (x, y, in cells) and the natural log of the object's
    longer side as a share of the picture's.
    """

    heat: Tensor
    color: Tensor
    geometry: Tensor


def _conv(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """3 x 3 convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class _Residual(nn.Module):
    """Two convolutions around a skip connection; the first may be dilated."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.first = _conv(width, width, dilation=dilation)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, H, W] -> the same shape."""
        return torch.relu(x + self.norm(self.second(self.first(x))))


class Detector(nn.Module):
    """Pictures [N, 3, 128, 128] in 0..1 -> `Maps`."""

    def __init__(self, classes: int, width: int = 128) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(3, 32, stride=2),
            _conv(32, 48, stride=2),
            _Residual(48, 1),
            _conv(48, width, stride=2),
            _Residual(width, 1),
            _Residual(width, 2),
            _Residual(width, 2),
            _Residual(width, 1),
        )
        self.heat = nn.Conv2d(width, classes, 1)
        # The middle of a ladder, a magnet or a bicycle shows what is behind it: the colour is read around it.
        self.color = nn.Sequential(_conv(width, 96, dilation=2), nn.Conv2d(96, len(COLOR_NAMES), 1))
        self.geometry = nn.Conv2d(width, 3, 1)
        nn.init.constant_(self._bias(self.heat), _PRIOR_LOGIT)

    @staticmethod
    def _bias(layer: nn.Conv2d) -> Tensor:
        if layer.bias is None:
            raise TypeError("the heatmap's layer needs a bias")
        return layer.bias

    def forward(self, pictures: Tensor) -> Maps:
        """See the class."""
        features = self.body((pictures - 0.5) * 4)
        return Maps(self.heat(features), self.color(features), self.geometry(features))


def parameters(model: nn.Module) -> int:
    """How many trained numbers the model has."""
    return sum(p.numel() for p in model.parameters())
