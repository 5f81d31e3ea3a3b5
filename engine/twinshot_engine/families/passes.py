"""From the step counts a server advertises to the constants of their passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from twinshot_engine.families.model import Pass
from twinshot_engine.schedule import Schedule, schedule_for

Times = tuple[float, float]
"""Current and target time of a pass."""


def distinct_times(steps: Sequence[int], schedule: Callable[[int], Schedule] = schedule_for) -> list[Times]:
    """The pairs of times that the schedules of all advertised step counts visit, each once."""
    schedules = [schedule(count) for count in steps]
    return sorted({pair for each in schedules for pair in zip(each.t, each.target_t, strict=True)})


def make_passes(
    table: Tensor, steps: Sequence[int], schedule: Callable[[int], Schedule] = schedule_for
) -> Mapping[int, tuple[Pass, ...]]:
    """Look up the constants of every advertised schedule.

    Args:
        table: a row for each of :func:`distinct_times`.
        steps: the advertised step counts.
        schedule: the schedule of a step count.
    """
    rows = dict(zip(distinct_times(steps, schedule), table, strict=True))
    passes: dict[int, tuple[Pass, ...]] = {}
    for count in steps:
        chosen = schedule(count)
        weights = torch.tensor(chosen.weights, dtype=torch.float32, device=table.device)
        pairs = zip(chosen.t, chosen.target_t, strict=True)
        passes[count] = tuple(
            Pass(rows[pair], each, numbers[2] != 0, chosen.takes_guidance)
            for pair, each, numbers in zip(pairs, weights, chosen.weights, strict=True)
        )
    return passes
