"""What is asked, and when: drawn before the first request, from a seed, so that a run can be repeated."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class PlanError(ValueError):
    """A plan that makes no sense; the message names the value and what is accepted."""


class Manner(StrEnum):
    """How a client behaves: it waits and reads, reads slowly, or leaves before the answer."""

    NORMAL = "normal"
    SLOW = "slow"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: `moment` and `patience` (of those who leave) are seconds; `number` seeds its picture."""

    moment: float
    number: int
    size: str
    manner: Manner
    patience: float


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Poisson arrivals at `rate` a second for `seconds`.

    `sizes` weighs sizes such as `1024x1024` (or `auto`); `slow` and `leaving` are parts (0 to 1) of the
    clients.
    """

    rate: float
    seconds: float
    sizes: dict[str, float]
    slow: float = 0.0
    leaving: float = 0.0
    patience: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rate", "seconds"):
            if not 0 < getattr(self, name) < 1e6:
                raise PlanError(f"{name} {getattr(self, name)} is not more than 0")
        if self.slow < 0 or self.leaving < 0 or self.slow + self.leaving > 1:
            raise PlanError(f"slow {self.slow} and leaving {self.leaving} are not parts of one whole")

    def arrivals(self) -> Iterator[Arrival]:
        """The requests in their order."""
        chance = random.Random(self.seed)
        sizes, weights = list(self.sizes), list(self.sizes.values())
        moment, number = chance.expovariate(self.rate), 0
        while moment < self.seconds:
            (size,) = chance.choices(sizes, weights)
            patience = chance.expovariate(1 / self.patience)
            yield Arrival(moment, number, size, self._manner(chance.random()), patience)
            moment, number = moment + chance.expovariate(self.rate), number + 1

    def _manner(self, draw: float) -> Manner:
        if draw < self.slow:
            return Manner.SLOW
        return Manner.LEAVING if draw < self.slow + self.leaving else Manner.NORMAL


def parse_sizes(text: str) -> dict[str, float]:
    """Weights of `1024x1024=3,512x512`; 1 where none is given. Raises PlanError."""
    sizes: dict[str, float] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        size, _, weight = part.partition("=")
        try:
            sizes[size] = float(weight or 1)
        except ValueError:
            raise PlanError(f"sizes {part!r} has no number after '='") from None
        if not 0 < sizes[size] < 1e9:
            raise PlanError(f"sizes {part!r} has a weight that is not more than 0")
    if not sizes:
        raise PlanError(f"sizes {text!r} names none; give some like 1024x1024=3,512x512=1")
    return sizes
