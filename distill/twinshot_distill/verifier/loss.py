"""What the detector is trained on: focal loss on centre heatmaps, colours and geometry at the centres."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from twinshot_distill.verifier.model import COLOR_NAMES, GRID, NATURAL, Maps
from twinshot_distill.world.vocabulary import OBJECTS

_COLOR_WEIGHT = 1.0
_GEOMETRY_WEIGHT = 0.5


class Targets(NamedTuple):
    """Heatmap [N, C, 16, 16]; the objects' batch rows, cells [M, 2] (x, y), labels [M, 5]."""

    heat: Tensor
    rows: Tensor
    cells: Tensor
    labels: Tensor


def make_targets(labels: Tensor) -> Targets:
    """Labels [N, K, 5] -> heatmaps with a Gaussian per object and 1 at its centre's cell."""
    heat = torch.zeros(len(labels), len(OBJECTS), GRID, GRID)
    rows, slots = torch.nonzero(labels[..., 0] >= 0, as_tuple=True)
    found = labels[rows, slots]
    cells = (found[:, 2:4] * GRID).long().clamp(0, GRID - 1)
    middle = torch.arange(GRID) + 0.5
    sigma = (found[:, 4] * GRID / 8).clamp(0.6, 1.1)[:, None]
    near_x = torch.exp(-0.5 * ((middle - found[:, 2:3] * GRID) / sigma) ** 2)
    near_y = torch.exp(-0.5 * ((middle - found[:, 3:4] * GRID) / sigma) ** 2)
    bumps = near_y[:, :, None] * near_x[:, None, :]
    for bump, row, index in zip(bumps, rows.tolist(), found[:, 0].long().tolist(), strict=True):
        heat[row, index] = torch.maximum(heat[row, index], bump)
    heat[rows, found[:, 0].long(), cells[:, 1], cells[:, 0]] = 1
    return Targets(heat, rows, cells, found)


def color_choices(twins: dict[str, str]) -> Tensor:
    """Which colour answers are right, bool [C, 11 labels, 11 answers]: a natural drawing may be its twin."""
    choices = torch.eye(len(COLOR_NAMES), dtype=torch.bool).repeat(len(OBJECTS), 1, 1)
    for index, entry in enumerate(OBJECTS):
        if entry.name in twins:
            choices[index, COLOR_NAMES.index(NATURAL), COLOR_NAMES.index(twins[entry.name])] = True
    return choices


def _focal(logits: Tensor, target: Tensor) -> Tensor:
    """CenterNet's penalty-reduced focal loss (arXiv:1904.07850, eq. 1), a mean over objects."""
    p = torch.sigmoid(logits)
    hit = (1 - p) ** 2 * F.logsigmoid(logits)
    miss = (1 - target) ** 4 * p**2 * F.logsigmoid(-logits)
    positive = target == 1
    return -torch.where(positive, hit, miss).sum() / positive.sum().clamp(min=1)


def detection_loss(maps: Maps, targets: Targets, choices: Tensor) -> Tensor:
    """The training loss, a scalar; `choices` is `color_choices`' table."""
    heat, color, geometry = (m.float() for m in maps)
    total = _focal(heat, targets.heat)
    if len(targets.rows) == 0:
        return total
    x, y = targets.cells.unbind(1)
    index, label = targets.labels[:, 0].long(), targets.labels[:, 1].long()
    answers = color[targets.rows, :, y, x].log_softmax(1)
    right = answers.masked_fill(~choices[index, label], -math.inf).logsumexp(1)
    offset = targets.labels[:, 2:4] * GRID - targets.cells - 0.5
    wanted = torch.cat([offset, targets.labels[:, 4:5].log()], 1)
    apart = F.smooth_l1_loss(geometry[targets.rows, :, y, x], wanted, beta=0.1)
    return total - _COLOR_WEIGHT * right.mean() + _GEOMETRY_WEIGHT * apart
