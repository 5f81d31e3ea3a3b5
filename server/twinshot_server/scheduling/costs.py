"""What a batch costs, as measured: the one truth behind admission, fairness and batching."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from twinshot_engine.types import Size
from twinshot_server.processes.messages import Cost

_WORTH = 0.95
"""A larger batch must cost at most this much of the smaller one's seconds an image to be used."""
_GUESS = 0.05
"""Seconds of a 1024x1024 image where nothing was measured yet."""


@dataclass(slots=True)
class Estimate:
    """A running mean and deviation of seconds, as TCP keeps them of round trips (RFC 6298).

    The deviation grows as fast as there but falls slowly: what was late once may be late again, and promises
    are made on it.
    """

    mean: float
    deviation: float = 0.0

    def learn(self, seconds: float) -> None:
        """Take in one measurement."""
        error = seconds - self.mean
        self.mean += error / 8
        surprise = abs(error) - self.deviation
        self.deviation += surprise / (4 if surprise > 0 else 128)


_Key = tuple[Size, int, int]


class CostTable:
    """Seconds of batches by (size, steps, batch size): measured at warm-up, learned in service."""

    def __init__(self) -> None:
        self._known: dict[_Key, Estimate] = {}
        self.after = Estimate(0.005, 0.001)
        """From pixels to a finished image file, waiting for the encoder included."""
        self.error = Estimate(0.0, 0.003)
        """How much later than foretold pictures are finished: what no single cost explains."""

    def install(self, costs: Iterable[Cost]) -> None:
        """Take over what an engine measured when it was warm."""
        for cost in costs:
            self._known[cost.size, cost.steps, cost.batch] = Estimate(cost.seconds, cost.seconds / 20)

    def learn(self, size: Size, steps: int, batch: int, seconds: float) -> None:
        """An engine drew a batch in so many seconds."""
        key = (size, steps, batch)
        if key in self._known:
            self._known[key].learn(seconds)
        else:
            self._known[key] = Estimate(seconds, seconds / 20)

    def seconds(self, size: Size, steps: int, batch: int = 1) -> float:
        """Expected seconds of a batch; scaled from the nearest smaller one that is known."""
        return self.estimate(size, steps, batch).mean

    def estimate(self, size: Size, steps: int, batch: int = 1) -> Estimate:
        """Expected seconds of a batch and how far they are usually off."""
        key = (size, steps, batch)
        return self._known.get(key) or self._scaled(key)

    def best_batch(self, size: Size, steps: int, limit: int) -> int:
        """The batch of at most `limit` images with the fewest seconds an image; 1 where no other is known."""
        best, lowest = 1, self.seconds(size, steps)
        for batch in sorted(batch for known, count, batch in self._known if (known, count) == (size, steps)):
            share = self.seconds(size, steps, batch) / batch
            if 1 < batch <= limit and share <= lowest * _WORTH:
                best, lowest = batch, share
        return best

    def _scaled(self, key: _Key) -> Estimate:
        work = _work(key)
        if not self._known:
            seconds = _GUESS * work / 1024**2
            return Estimate(seconds, seconds / 4)
        smaller = [known for known in self._known if _work(known) <= work]
        nearest = max(smaller, key=_work) if smaller else min(self._known, key=_work)
        seconds = self._known[nearest].mean * work / _work(nearest)
        return Estimate(seconds, seconds / 4)


def _work(key: _Key) -> int:
    (width, height), steps, batch = key
    return width * height * steps * batch
