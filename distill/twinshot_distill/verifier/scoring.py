"""The verifier: frozen weights, a frozen threshold, and the questions one can ask of a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from twinshot_distill.packing import read_pinned
from twinshot_distill.verifier.detections import Detection, decode
from twinshot_distill.verifier.fidelity import Fit, refit
from twinshot_distill.verifier.model import COLOR_NAMES, INPUT_SIDE, Detector
from twinshot_distill.verifier.rules import holds, validate
from twinshot_distill.world.scenes import Scene

STRICT = 0.5
"""The strict threshold, reported beside the calibrated one."""

_MIN_SIDE = 64
_CHUNK = 64


def to_pictures(images: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] or float [N, 3, H, W] in 0..1 -> float32 [N, 3, 128, 128].

    Raises ValueError on another shape, a picture that is not square, or values out of range.
    """
    if images.dtype == torch.uint8 and images.ndim == 4 and images.shape[3] == 3:
        pictures = images.permute(0, 3, 1, 2).float() / 255
    elif images.is_floating_point() and images.ndim == 4 and images.shape[1] == 3:
        pictures = images.float()
    else:
        accepted = "uint8 [N, H, W, 3] or float [N, 3, H, W]"
        raise ValueError(f"images are {images.dtype} {list(images.shape)}; accepted: {accepted}")
    height, width = pictures.shape[2:]
    if height != width or height < _MIN_SIDE:
        raise ValueError(f"images are {height} x {width}; accepted: square, at least {_MIN_SIDE} pixels")
    if pictures.numel() and not bool((pictures.amin() >= -1e-3) & (pictures.amax() <= 1 + 1e-3)):
        raise ValueError(f"image values reach from {pictures.amin()} to {pictures.amax()}; accepted: 0 to 1")
    if height == INPUT_SIDE:
        return pictures
    return F.interpolate(pictures, (INPUT_SIDE, INPUT_SIDE), mode="bilinear", antialias=True)


@dataclass
class Verifier:
    """Judges pictures against scenes; make one with `Verifier.load()`."""

    model: Detector
    classes: tuple[str, ...]
    twins: dict[str, str]
    threshold: float
    device: torch.device

    @classmethod
    def load(cls, path: Path | str | None = None) -> Self:
        """Read `verifier.json` and the weights beside it from a folder (default: the frozen ones).

        Raises ValueError where the weights' sha256 is not the one written down.
        """
        folder = Path(__file__).parent if path is None else Path(path)
        card: dict[str, Any] = json.loads((folder / "verifier.json").read_text())
        weights = read_pinned(folder / card["weights"], card["sha256"])
        architecture = card["architecture"]
        if tuple(architecture["colors"]) != COLOR_NAMES:
            raise ValueError(f"the weights know the colours {architecture['colors']}, not {COLOR_NAMES}")
        classes = tuple(architecture["classes"])
        model = Detector(len(classes), architecture["width"])
        model.load_state_dict(weights)
        model.eval().requires_grad_(False)
        return cls(model, classes, card["twins"], card["threshold"], torch.device("cpu"))

    def to(self, device: str | torch.device) -> Self:
        """Move the network; images may be on any device."""
        self.device = torch.device(device)
        self.model.to(self.device)
        return self

    @torch.inference_mode()
    def detect(self, images: Tensor, threshold: float | None = None) -> list[list[Detection]]:
        """Every object found in each picture, best first (images as in `to_pictures`)."""
        limit = self.threshold if threshold is None else threshold
        if not 0 < limit < 1:
            raise ValueError(f"threshold {limit} is not between 0 and 1")
        found: list[list[Detection]] = []
        for start in range(0, len(images), _CHUNK):
            pictures = to_pictures(images[start : start + _CHUNK].to(self.device))
            found += decode(self.model(pictures), self.classes, limit)
        return found

    def check(self, images: Tensor, scenes: Sequence[Scene], threshold: float | None = None) -> list[bool]:
        """Whether each picture shows its scene, by GenEval's rules for the scene's task.

        Raises ValueError on a noun the detector does not know or unequal numbers of both.
        """
        self._validate(images, scenes)
        found = self.detect(images, threshold)
        return [holds(scene, seen, self.twins) for scene, seen in zip(scenes, found, strict=True)]

    def explain(self, image: Tensor, scene: Scene, threshold: float | None = None) -> list[Detection]:
        """What was found in one picture (uint8 [H, W, 3] or float [3, H, W]), the scene's nouns first."""
        self._validate(image[None], [scene])
        asked = {item.noun for item in scene.items}
        found = self.detect(image[None], threshold)[0]
        return sorted(found, key=lambda d: (d.noun not in asked, -d.score))

    @torch.inference_mode()
    def fidelity(
        self, images: Tensor, scenes: Sequence[Scene], threshold: float | None = None
    ) -> list[float]:
        """How well each picture's objects are drawn, about 1 for a copy of the sprite.

        The mean over a scene's objects of the refitted sprite's correlation; 0 for one not detected.
        """
        self._validate(images, scenes)
        scores = []
        for scene, seen, image in zip(scenes, self.detect(images, threshold), images, strict=True):
            fits = _fits(scene, seen)
            values = refit(to_pictures(image[None].to(self.device))[0], fits)
            scores.append(sum(values) / len(scene.items))
        return scores

    def _validate(self, images: Tensor, scenes: Sequence[Scene]) -> None:
        if len(images) != len(scenes):
            raise ValueError(f"{len(images)} images for {len(scenes)} scenes; one scene an image")
        for scene in scenes:
            validate(scene, self.classes)


def _fits(scene: Scene, found: Sequence[Detection]) -> list[Fit]:
    """Each item with the best detection of its class that no earlier item has taken."""
    left, fits = list(found), []
    for item in scene.items:
        same = [d for d in left if d.noun == item.noun]
        if not same:
            continue
        chosen = max(same, key=lambda d: (d.color == item.color, d.score))
        left.remove(chosen)
        fits.append(Fit(item.noun, item.color, chosen.x, chosen.y, chosen.size))
    return fits
