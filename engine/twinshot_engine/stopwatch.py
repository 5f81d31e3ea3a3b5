"""Stage times without stalling the device."""

import time
from typing import NamedTuple

import torch


class _Mark(NamedTuple):
    stage: str
    moment: float
    event: torch.cuda.Event | None


class Stopwatch:
    """Times consecutive stages.

    On a GPU the host runs ahead of the device, so each mark is an event in the stream, and only
    :meth:`stop` waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[_Mark] = []
        self.lap("")

    def lap(self, stage: str) -> None:
        """End ``stage``, which began at the previous lap."""
        event = None
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
        self._marks.append(_Mark(stage, time.perf_counter(), event))

    def stop(self) -> dict[str, float]:
        """Wait for the last stage and return the seconds of each."""
        last = self._marks[-1].event
        if last is not None:
            last.synchronize()
        return {
            mark.stage: _between(before, mark)
            for before, mark in zip(self._marks, self._marks[1:], strict=False)
        }


def _between(before: _Mark, after: _Mark) -> float:
    if before.event is None or after.event is None:
        return after.moment - before.moment
    return float(before.event.elapsed_time(after.event)) / 1000
