"""Scores of compared training methods: each checkpoint draws as its kind is served, the verifier judges.

A flow model takes Euler steps with guidance 2, which is two passes a step. The methods that have guidance of
the same strength in their training targets are served without: few-step schedules at 1, 2 and 4 steps, any
step to the next at 8, an ordinary flow sampler at 30. Passes are counted, so both kinds can be read at equal
steps or at equal passes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from twinshot_distill.evaluate import Trial, draw, evaluate, trials
from twinshot_distill.report import say
from twinshot_distill.verifier.scoring import Verifier
from twinshot_distill.world.scenes import TASKS, Split
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.schedule import Steps

FLOW_GUIDANCE = 2.0
"""Of a flow model, v_u + 2 (v_c - v_u): as strong as v_c + 1 (v_c - v_u), which the others train for."""

_EACH_TASK = 2
_FEW = 8  # for pictures whose caption's length few others have

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Scoring:
    """What is scored, and how pictures are made.

    Attributes:
        steps: step counts.
        splits: combinations, seen or unseen.
        count: pictures a task.
        batch: pictures at once.
        device: "cuda" or "cpu".
        precision: see `EngineConfig`.
    """

    steps: tuple[int, ...]
    splits: tuple[Split, ...]
    count: int
    batch: int
    device: str
    precision: str


@dataclass(frozen=True, slots=True)
class Serving:
    """How a method's checkpoint draws at a step count."""

    steps: Steps
    guidance: float

    @property
    def passes(self) -> int:
        """How often the transformer runs for a picture."""
        return int(self.steps) * (1 if self.guidance == 1 else 2)


def serving(method: str, steps: int) -> Serving:
    """Flow models are guided Euler samplers; the others are served as the engine serves their kind."""
    if method == "flow-matching":
        return Serving(Steps(steps, "multi"), FLOW_GUIDANCE)
    return Serving(Steps(steps), 1.0)


def score(method: str, folder: Path, plan: Scoring) -> list[dict[str, Any]]:
    """Rows of a method whose folder holds a `checkpoint`; those that an earlier call has left are kept.

    The first call also leaves `one_step.png`, pictures of :func:`sheet_trials` side by side.
    """
    kept = folder / f"scores-{plan.precision}-{plan.count}.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else []
    done = {(row["combinations"], row["steps"]) for row in rows}
    left = [(split, steps) for split in plan.splits for steps in plan.steps if (split, steps) not in done]
    if left:
        for more in _score(method, folder, plan, left):
            rows += more
            kept.write_text(json.dumps(rows, indent=1) + "\n")
    return [row for row in rows if row["combinations"] in plan.splits and row["steps"] in plan.steps]


def sheet_trials() -> list[Trial]:
    """What is drawn to be looked at: some unseen combinations of every task."""
    return [trial for task in TASKS for trial in trials(task, "unseen", _EACH_TASK)]


def _score(
    method: str, folder: Path, plan: Scoring, left: Sequence[tuple[Split, int]]
) -> Iterator[list[dict[str, Any]]]:
    engine = _open(method, folder / "checkpoint", plan)
    _draw_strip(engine, serving(method, 1).guidance, folder / "one_step.png")
    verifier = Verifier.load().to(engine.info.device)
    for split, steps in left:
        way = serving(method, steps)
        say(f"{method}: {steps} steps, {split}")
        rows = evaluate(
            engine,
            verifier,
            method=method,
            steps=steps,
            split=split,
            count=plan.count,
            guidance=way.guidance,
        )
        yield [row | {"guidance": way.guidance, "passes": way.passes} for row in rows]


def _open(method: str, checkpoint: Path, plan: Scoring) -> Engine:
    counts = dict.fromkeys((1, *plan.steps))
    config = EngineConfig(
        str(checkpoint),
        plan.device,
        plan.precision,
        steps=tuple(serving(method, steps).steps for steps in counts),
        batch_sizes=tuple(sorted({1, min(_FEW, plan.batch), plan.batch})),
        max_batch=plan.batch,
    )
    engine = Engine.load(config)
    engine.warm()
    return engine


def _draw_strip(engine: Engine, guidance: float, path: Path) -> None:
    pictures = np.concatenate(list(draw(engine, sheet_trials(), 1, guidance)))
    Image.fromarray(np.concatenate(list(pictures), axis=1)).save(path)
