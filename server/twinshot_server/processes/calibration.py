"""How long batches take, measured once the engine is warm: what admission and batching reckon with."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence

from twinshot_engine.types import GenerateRequest, Size
from twinshot_server.engine_protocol import ImageEngine
from twinshot_server.processes.messages import Cost

BUDGET_SECONDS = 10.0
"""How long measuring may take; what it does not reach is estimated from the rest, and learned in service."""


def measure_costs(
    engine: ImageEngine, batches: Sequence[int], budget: float = BUDGET_SECONDS
) -> tuple[Cost, ...]:
    """Seconds of batches of the sizes and step counts that the engine advertises, the usual ones first."""
    deadline = time.monotonic() + budget
    kinds = itertools.takewhile(lambda _: time.monotonic() < deadline, _kinds(engine, batches))
    return tuple(Cost(size, steps, batch, _time(engine, size, steps, batch)) for size, steps, batch in kinds)


def _kinds(engine: ImageEngine, batches: Sequence[int]) -> Iterator[tuple[Size, int, int]]:
    sizes, steps = list(engine.info.sizes), list(engine.info.steps)[:2]
    yield from ((sizes[0], count, 1) for count in steps)
    yield from ((size, steps[0], 1) for size in sizes[1:])
    yield from ((size, steps[0], batch) for size in sizes for batch in batches if batch > 1)


def _time(engine: ImageEngine, size: Size, steps: int, batch: int) -> float:
    """The second of two runs: the first may have to allocate or to compile.

    Every prompt is new, so that none is remembered from the run before.
    """
    seconds = 0.0
    for run in ("first", "second"):
        prompts = [f"{run} {size} {steps} {batch} {number}" for number in range(batch)]
        requests = [GenerateRequest(prompt, 0, *size, steps) for prompt in prompts]
        started = time.perf_counter()
        engine.generate(requests)
        seconds = time.perf_counter() - started
    return seconds
