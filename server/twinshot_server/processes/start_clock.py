"""How long each stage of an engine's start takes, told from its reports."""

from __future__ import annotations

import time
from collections.abc import Callable

PROCESS = "process"
"""Until the engine's process says its first word."""
WARMING = "warming"
"""Whatever makes first requests fast: captures, compilations, a picture of every size."""
MEASURING = "measuring costs"
_LOADED = "ready"


class StartClock:
    """Begins to count when it is made."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = [(PROCESS, clock())]
        self._loaded = False

    def enter(self, stage: str) -> None:
        """The engine reports that it begins with this; loading and warming each end with `ready`."""
        if stage == _LOADED:
            stage, self._loaded = WARMING, True
        elif self._loaded and stage != MEASURING:
            return
        if self._began[-1][0] != stage:
            self._began.append((stage, self._clock()))

    def finish(self) -> dict[str, float]:
        """The engine is ready: seconds by stage, in their order."""
        names = [name for name, _ in self._began]
        moments = [moment for _, moment in self._began] + [self._clock()]
        return {
            name: round(end - start, 3)
            for name, start, end in zip(names, moments[:-1], moments[1:], strict=True)
        }
