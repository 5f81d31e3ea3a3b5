"""How far the verifier can be trusted: pass rates of true scenes and hard negatives, and stress tests.

Three seeds never meet: training's, the calibration's (which picks the threshold) and the test's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor

from twinshot_distill.verifier.augment import LEVELS, Level, blur, degrade
from twinshot_distill.verifier.cases import Cases, make_cases
from twinshot_distill.verifier.detections import Detection
from twinshot_distill.verifier.freeze import read_card, write_card
from twinshot_distill.verifier.rules import holds
from twinshot_distill.verifier.scoring import STRICT, Verifier, to_pictures
from twinshot_distill.world.scenes import TASKS, Scene

CALIBRATION_SEED = 20_011
TEST_SEED = 30_011
_FLOOR = 0.05
_GRID = tuple(round(0.06 + 0.02 * k, 2) for k in range(23))
_COST = 5  # a wrong picture that passes is worse than a right one that does not
_TOLERANCE = 0.003  # given up, at most, for a higher and so stricter threshold


class Judge(Protocol):
    """What can be measured: a verifier, or another network in its place."""

    twins: dict[str, str]

    def detect(self, images: Tensor, threshold: float | None = None) -> list[list[Detection]]:
        """Every object found in each picture with at least that score."""


class Rate(TypedDict):
    """One row of the measurements."""

    task: str
    level: str
    threshold: float
    true_pass: float
    false_pass: float
    n: int


def _share(verifier: Judge, found: Sequence[list[Detection]], scenes: list[Scene], threshold: float) -> float:
    """The share of scenes that hold, given detections made at a lower threshold."""
    seen = [[d for d in picture if d.score >= threshold] for picture in found]
    return fmean(holds(s, d, verifier.twins) for s, d in zip(scenes, seen, strict=True))


def rates(
    verifier: Judge, seed: int, count: int, levels: dict[str, Level], limits: Sequence[float]
) -> list[Rate]:
    """True and false pass of every task at every level and threshold, on `count` pictures a task."""
    rows: list[Rate] = []
    for task in TASKS:
        cases = make_cases(task, count, seed)
        pictures = to_pictures(cases.pictures)
        for name, level in levels.items():
            rng = torch.Generator().manual_seed(seed)
            found = verifier.detect(degrade(pictures, level, rng), _FLOOR)
            for limit in limits:
                true = _share(verifier, found, cases.scenes, limit)
                false = _share(verifier, found, cases.negatives, limit)
                rows.append(
                    Rate(task=task, level=name, threshold=limit, true_pass=true, false_pass=false, n=count)
                )
    return rows


def choose_threshold(rows: Sequence[Rate]) -> float:
    """The highest threshold within 0.3 points of the best "true pass less false passes, fivefold"."""
    worth = {
        limit: fmean(r["true_pass"] - _COST * r["false_pass"] for r in rows if r["threshold"] == limit)
        for limit in {r["threshold"] for r in rows}
    }
    return max(limit for limit, value in worth.items() if value >= max(worth.values()) - _TOLERANCE)


def calibrate(folder: Path, count: int = 120) -> float:
    """Choose the threshold on the calibration seed and write it into the card."""
    rows = rates(Verifier.load(folder), CALIBRATION_SEED, count, LEVELS, _GRID)
    card = read_card(folder)
    card["threshold"] = choose_threshold(rows)
    write_card(folder, card)
    return float(card["threshold"])


def _mixed(seed: int, count: int, erased: float = 0.0) -> tuple[Tensor, list[Scene]]:
    """`count` pictures of every task, at 128 px, with their scenes."""
    cases: list[Cases] = [make_cases(task, count, seed, erased) for task in TASKS]
    return to_pictures(torch.cat([c.pictures for c in cases])), [s for c in cases for s in c.scenes]


def _blurred(pictures: Tensor, sigma: float) -> Tensor:
    return blur(pictures, torch.full((len(pictures),), sigma))


def _stress_pictures(seed: int, count: int) -> tuple[dict[str, Tensor], list[Scene]]:
    """Pictures that should not pass for the scenes, or only just, by the name of what was done."""
    pictures, scenes = _mixed(seed, count)
    # A shift by a picture or so would pair two scenes of one task; this pairs two tasks.
    stranger = pictures.roll(count + 7, 0)
    return {
        "unrelated picture": stranger,
        "noise": torch.rand(pictures.shape, generator=torch.Generator().manual_seed(seed)),
        "ghost 50/50": pictures * 0.5 + stranger * 0.5,
        "ghost 70/30": pictures * 0.7 + stranger * 0.3,
        "left half erased": _mixed(seed, count, erased=0.5)[0],
        "blur sigma 2": _blurred(pictures, 2.0),
        "blur sigma 3": _blurred(pictures, 3.0),
    }, scenes


def stress(verifier: Verifier, count: int) -> dict[str, dict[str, float]]:
    """Pass rates of spoiled pictures at the calibrated, a middle and the strict threshold."""
    spoiled, scenes = _stress_pictures(TEST_SEED + 10, count)
    limits = (verifier.threshold, 0.3, STRICT)
    table = {}
    for name, pictures in spoiled.items():
        found = verifier.detect(pictures, _FLOOR)
        table[name] = {str(limit): _share(verifier, found, scenes, limit) for limit in limits}
    return table


def fidelities(verifier: Verifier, count: int) -> dict[str, dict[str, float]]:
    """Median and 5th percentile of the fidelity score, clean and spoiled."""
    pictures, scenes = _mixed(TEST_SEED + 20, count)
    stranger = pictures.roll(count + 7, 0)
    spoiled = {"clean": pictures}
    spoiled |= {f"blur sigma {s}": _blurred(pictures, float(s)) for s in (1, 2, 3)}
    spoiled |= {"ghost 70/30": pictures * 0.7 + stranger * 0.3}
    spoiled |= {"ghost 50/50": pictures * 0.5 + stranger * 0.5, "unrelated": stranger}
    table = {}
    for name, images in spoiled.items():
        scores = sorted(verifier.fidelity(images, scenes, _FLOOR))
        table[name] = {"median": median(scores), "p5": scores[len(scores) // 20]}
    return table


def measure(verifier: Verifier, count: int = 200) -> dict[str, Any]:
    """All measurements on the test seed, `count` pictures a task, as they go into the card."""
    return {
        "seed": TEST_SEED,
        "rates": rates(verifier, TEST_SEED, count, LEVELS, (verifier.threshold, STRICT)),
        "stress": {"n": 40 * len(TASKS), "passed": stress(verifier, 40)},
        "fidelity": {"n": 10 * len(TASKS), "scores": fidelities(verifier, 10)},
    }
