"""From labelled cells to objects, and from objects to a verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from twinshot_distill.auditor.model import CELLS, EMPTY_WEIGHT, CellLabeller, Labels
from twinshot_distill.packing import read_pinned
from twinshot_distill.verifier.detections import Detection
from twinshot_distill.verifier.model import NATURAL
from twinshot_distill.verifier.rules import holds, validate
from twinshot_distill.verifier.scoring import to_pictures
from twinshot_distill.world.scenes import Scene
from twinshot_distill.world.vocabulary import COLORS

FOLDER = Path(__file__).parent
CARD, WEIGHTS = "auditor.json", "auditor.safetensors"
STRICT = 0.8
"""The strict threshold: how sure of its kind a region must be on average."""

LEAST_CELLS = 2
_CHUNK = 64
_NAMES = (*COLORS, NATURAL)


@dataclass
class Auditor:
    """Judges pictures against scenes; make one with :meth:`load`."""

    model: CellLabeller
    classes: tuple[str, ...]
    twins: dict[str, str]
    threshold: float

    @classmethod
    def load(cls, folder: Path = FOLDER) -> Self:
        """Read ``auditor.json`` and the weights beside it.

        Raises:
            ValueError: the weights' sha256 is not the one written down.
        """
        card: dict[str, Any] = json.loads((folder / CARD).read_text())
        weights = read_pinned(folder / WEIGHTS, card["sha256"])
        classes = tuple(card["classes"])
        model = CellLabeller(len(classes))
        model.load_state_dict(weights)
        model.eval().requires_grad_(requires_grad=False)
        return cls(model, classes, card["twins"], card["threshold"])

    @torch.inference_mode()
    def detect(self, images: Tensor, threshold: float | None = None) -> list[list[Detection]]:
        """Find the objects in pictures, best first; images as the verifier's ``to_pictures`` takes them."""
        limit = self.threshold if threshold is None else threshold
        found: list[list[Detection]] = []
        for start in range(0, len(images), _CHUNK):
            labels = self.model(to_pictures(images[start : start + _CHUNK]))
            found += regions(labels, self.classes, limit)
        return found

    def check(self, images: Tensor, scenes: Sequence[Scene], threshold: float | None = None) -> list[bool]:
        """Say of each picture whether it shows its scene, by GenEval's rules.

        Raises:
            ValueError: the counts differ, or a noun is not known.
        """
        if len(images) != len(scenes):
            raise ValueError(f"{len(images)} images for {len(scenes)} scenes; one scene an image")
        for scene in scenes:
            validate(scene, self.classes)
        found = self.detect(images, threshold)
        return [holds(scene, seen, self.twins) for scene, seen in zip(scenes, found, strict=True)]


def regions(labels: Labels, classes: Sequence[str], threshold: float) -> list[list[Detection]]:
    """Join neighbouring cells of one kind to objects.

    A region counts if it has at least two cells and their mean probability reaches ``threshold``. Empty cells
    counted little in training, so the network takes them for too rare; their odds are put right here.
    """
    odds = labels.kind.clone()
    odds[:, len(classes)] -= math.log(EMPTY_WEIGHT)
    sure, kinds = odds.softmax(1).max(1)
    pictures: list[list[Detection]] = []
    for probability, kind, color in zip(sure, kinds, labels.color, strict=True):
        found = []
        for index in sorted(set(kind.flatten().tolist()) - {len(classes)}):
            for region in connected(kind == index):
                score = float(probability[region].mean())
                if region.sum() >= LEAST_CELLS and score >= threshold:
                    found.append(_detection(classes[index], region, score, color))
        pictures.append(sorted(found, key=lambda each: -each.score))
    return pictures


def connected(mask: Tensor) -> list[Tensor]:
    """Split a mask ``[16, 16]`` into its connected regions; corners that touch connect."""
    names = torch.arange(1, mask.numel() + 1).reshape(mask.shape).float() * mask
    for _ in range(mask.numel()):
        spread = F.max_pool2d(names[None, None], 3, 1, 1)[0, 0] * mask
        if torch.equal(spread, names):
            break
        names = spread
    return [names == name for name in sorted(set(names[mask].tolist()))]


def _detection(noun: str, region: Tensor, score: float, color: Tensor) -> Detection:
    y, x = (region.nonzero().float().mean(0) + 0.5) / CELLS
    name = _NAMES[int(color[:, region].float().mean(1).argmax())]
    return Detection(noun, name, score, float(x), float(y), float(region.sum().sqrt()) / CELLS)
