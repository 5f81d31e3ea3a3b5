"""From the detector's maps to a list of objects: peaks, refined centres, and no object twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from twinshot_distill.verifier.model import COLOR_NAMES, GRID, Maps

_SAME_OBJECT = 0.4
"""Two peaks of one class nearer than this share of the object's size are one object."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One object found: `x`, `y` its box's centre and `size` its longer side, in shares of the side.

    `color` is one of the ten names or "natural"; `score` is in 0..1.
    """

    noun: str
    color: str
    score: float
    x: float
    y: float
    size: float


def decode(maps: Maps, classes: Sequence[str], threshold: float) -> list[list[Detection]]:
    """Every picture's detections with a score of at least `threshold`, best first."""
    heat = torch.sigmoid(maps.heat.float())
    peaks = (heat == F.max_pool2d(heat, 3, 1, 1)) & (heat >= threshold)
    found = peaks.nonzero().cpu()
    rows, index, y, x = found.to(heat.device).unbind(1)
    scores = heat[rows, index, y, x].cpu()
    geometry = maps.geometry.float()[rows, :, y, x].cpu()
    colors = maps.color.float()[rows, :, y, x].argmax(1).cpu()
    pictures: list[list[Detection]] = [[] for _ in range(len(heat))]
    for k in scores.argsort(descending=True).tolist():
        name, color = classes[int(found[k, 1])], COLOR_NAMES[int(colors[k])]
        _add(pictures[int(found[k, 0])], _detection(name, color, float(scores[k]), found[k], geometry[k]))
    return pictures


def _detection(noun: str, color: str, score: float, cell: Tensor, geometry: Tensor) -> Detection:
    """A peak's cell (.., y, x) and geometry (dx, dy, log size) as a detection."""
    dx, dy, log_size = geometry.tolist()
    x = (float(cell[3]) + 0.5 + max(-1.0, min(1.0, dx))) / GRID
    y = (float(cell[2]) + 0.5 + max(-1.0, min(1.0, dy))) / GRID
    size = float(torch.tensor(log_size).exp().clamp(0.05, 1.2))
    return Detection(noun, color, score, x, y, size)


def _add(found: list[Detection], new: Detection) -> None:
    """Append unless a better detection of the same object is there."""
    for old in found:
        near = max(abs(old.x - new.x), abs(old.y - new.y)) < _SAME_OBJECT * max(old.size, new.size)
        if old.noun == new.noun and near:
            return
    found.append(new)
