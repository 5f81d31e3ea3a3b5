"""Intervals and corrections of measured shares, and how varied pictures are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_Z = 1.959964
_DIVERSITY_SIDE = 64


def wilson(score: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` independent trials (Wilson, 1927)."""
    if count == 0:
        return 0.0, 1.0
    square = _Z**2
    centre = (score + square / (2 * count)) / (1 + square / count)
    half = _Z / (1 + square / count) * math.sqrt(score * (1 - score) / count + square / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean of independent values by Student's t; of one value, all numbers.

    The quantile of t is the normal one's series in 1 / degrees of freedom (Abramowitz and Stegun, 26.7.5),
    within .001 from 6 degrees on.
    """
    free = len(values) - 1
    if free == 0:
        return -math.inf, math.inf
    z = _Z
    quantile = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    quantile += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    half = quantile * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def corrected(score: float, true_pass: float, false_pass: float) -> float:
    """A share of passes without the judge's own errors: (score - false) / (true - false), within 0 to 1."""
    if true_pass <= false_pass:
        return score
    return min(1.0, max(0.0, (score - false_pass) / (true_pass - false_pass)))


def judge_errors(card: Mapping[str, Any], task: str, threshold: float) -> tuple[float, float]:
    """True and false passes of a task on clean pictures, as a verifier's card has measured them."""
    for row in card["measured"]["rates"]:
        if (row["task"], row["level"], row["threshold"]) == (task, "clean", threshold):
            return float(row["true_pass"]), float(row["false_pass"])
    return 1.0, 0.0


def pairwise_distance(pictures: NDArray[np.uint8]) -> float:
    """Mean root-mean-square difference of all pairs of pictures [N, H, W, 3], in 0..1, read at 64 pixels."""
    small = [_shrunk(picture) for picture in pictures]
    return fmean(float(np.sqrt(np.mean((a - b) ** 2))) for a, b in combinations(small, 2))


def _shrunk(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    small = Image.fromarray(picture).resize((_DIVERSITY_SIDE, _DIVERSITY_SIDE), Image.Resampling.BOX)
    return np.asarray(small, np.float64) / 255


def shares_below(values: Sequence[float], limit: float) -> float:
    """Which share of values is below a limit."""
    return sum(value < limit for value in values) / len(values)
