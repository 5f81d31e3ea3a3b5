"""Pictures of many prompts from an engine, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from twinshot_distill.errors import TrainingError
from twinshot_engine.engine import Engine
from twinshot_engine.errors import InvalidRequestError
from twinshot_engine.types import GenerateRequest

Report = Callable[[str, float], None]
"""Receives what is going on and how much of it is done, 0 to 1."""


def check_prompts(engine: Engine, requests: Sequence[GenerateRequest]) -> None:
    """Check all requests before the first is drawn. Raises TrainingError that tells how many cannot be."""
    refused: list[tuple[GenerateRequest, str]] = []
    for request in requests:
        try:
            engine.validate(request)
        except InvalidRequestError as error:
            refused.append((request, str(error)))
    if refused:
        first, words = refused[0]
        raise TrainingError(
            f"{engine.info.name} cannot draw {len(refused)} of {len(requests)} requests, the first of them "
            f"{first.prompt[:80]!r}: {words}"
        )


def draw_all(
    engine: Engine, requests: Sequence[GenerateRequest], what: str, report: Report
) -> Iterator[NDArray[np.uint8]]:
    """Pictures [H, W, 3] of checked requests, in their order."""
    for start in range(0, len(requests), engine.max_batch):
        report(what, start / len(requests))
        yield from engine.generate(requests[start : start + engine.max_batch]).images
