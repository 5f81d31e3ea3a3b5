"""Training pictures, rendered once into a folder and read back as arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinshot_distill.verifier.bank import SpriteBank
from twinshot_distill.verifier.composer import LABEL_FIELDS, MAX_OBJECTS, BackgroundPool, training_picture
from twinshot_distill.verifier.model import INPUT_SIDE
from twinshot_distill.world.sprites import load_sprites

_POOL_SIDE = 160
_WILD = 0.25
_SOURCES = ("backgrounds.py", "bank.py", "composer.py", "faults.py", "layouts.py")


@dataclass(frozen=True, slots=True)
class DataSettings:
    """What the training pictures depend on."""

    scenes: int = 48_000
    seed: int = 71
    backgrounds: int = 1_500
    fault: float = 0.13

    def fingerprint(self) -> str:
        """A name for these settings, the drawings and the code that composes them."""
        digest = hashlib.sha256(repr(self).encode() + load_sprites().tobytes())
        for name in _SOURCES:
            digest.update(Path(__file__).with_name(name).read_bytes())
        return digest.hexdigest()[:16]


def render(
    settings: DataSettings, folder: Path, progress: Callable[[int], None]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Pictures uint8 [n, 128, 128, 3] and labels float32 [n, 5, 5], from the cache where they are in it.

    `progress` is called with the number of pictures done so far.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"scenes-{settings.fingerprint()}.npy"
    kept_labels = kept.with_name(kept.name.replace("scenes", "labels"))
    if not (kept.exists() and kept_labels.exists()):
        pictures, labels = _render(settings, progress)
        for array, path in ((pictures, kept), (labels, kept_labels)):
            np.save(partial := path.with_suffix(".partial.npy"), array)
            partial.replace(path)
    progress(settings.scenes)
    return np.load(kept, mmap_mode="r"), np.load(kept_labels)


def _render(
    settings: DataSettings, progress: Callable[[int], None]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    rng = np.random.default_rng(settings.seed)
    bank, pool = SpriteBank(), BackgroundPool(settings.seed + 1, settings.backgrounds, _POOL_SIDE, _WILD)
    pictures = np.empty((settings.scenes, INPUT_SIDE, INPUT_SIDE, 3), np.uint8)
    labels = np.empty((settings.scenes, MAX_OBJECTS, LABEL_FIELDS), np.float32)
    for row in range(settings.scenes):
        pictures[row], labels[row] = training_picture(rng, bank, pool, INPUT_SIDE, settings.fault)
        if row % 100 == 0:
            progress(row)
    return pictures, labels


def batch(
    pictures: NDArray[np.uint8], labels: NDArray[np.float32], rows: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """Some rows as float [n, 3, 128, 128] in 0..1 and labels [n, 5, 5]."""
    chosen = torch.from_numpy(np.ascontiguousarray(pictures[rows]))
    return chosen.permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels[rows])
