"""Times of device work, one a sample."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def sample_ms(work: Callable[[], object], device: torch.device, *, samples: int, warm: int) -> list[float]:
    """Run ``work`` again and again, and return the milliseconds of each run after the first ``warm``.

    On a GPU a run is timed by events in its stream, so what the host does before it launches does not count
    and runs never overlap; on the CPU by the clock.
    """
    for _ in range(warm):
        work()
    one = _event_ms if device.type == "cuda" else _clock_ms
    return [one(work, device) for _ in range(samples)]


def clock_ms(work: Callable[[], object]) -> float:
    """Milliseconds that the caller waits for ``work``."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def _clock_ms(work: Callable[[], object], _device: torch.device) -> float:
    return clock_ms(work)


def _event_ms(work: Callable[[], object], device: torch.device) -> float:
    torch.cuda.synchronize(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
