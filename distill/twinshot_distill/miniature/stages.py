"""What every stage of the miniature's training shares: a loop with states of its own in the run's folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from twinshot_distill.checkpointing import Keeper
from twinshot_distill.journal import Journal, Sampler
from twinshot_distill.loop import Length, Loop, LoopSettings
from twinshot_distill.miniature.configuration import Run
from twinshot_distill.miniature.preview import preview_prompts
from twinshot_distill.optimizer import Optimizer, OptimizerSettings
from twinshot_distill.stepping import CapturableTrainee, CapturedSteps


class StageSettings(Protocol):
    """What the settings of all stages have."""

    @property
    def seconds(self) -> float:
        """How long the stage trains."""

    @property
    def batch(self) -> int:
        """Rows a step."""

    @property
    def optimizer(self) -> OptimizerSettings:
        """How its weights move."""


def train_stage(
    name: str,
    trainee: CapturableTrainee,
    parameters: Mapping[str, nn.Parameter],
    settings: StageSettings,
    run: Run,
    out: Path,
    sampler: Sampler | None = None,
) -> Loop:
    """Train one stage to its end, from its newest state if it was interrupted.

    Returns the loop, which tells how many steps that took, and how long.

    Raises:
        TrainingError: it diverged, or its state has other settings.
    """
    captured = run.captured and next(iter(parameters.values())).is_cuda
    optimizer = Optimizer(parameters, settings.optimizer, capturable=captured)
    loop = Loop(
        trainee,
        optimizer,
        LoopSettings(
            Length(seconds=settings.seconds), save_seconds=run.save_seconds, save_last=False, seed=run.seed
        ),
        Keeper(out / "state" / name, _settings(settings, run), keep=1),
        Journal(
            *(out, name, settings.batch),
            sampler=sampler,
            sample_every=run.sample_seconds,
            prompts=preview_prompts(run.previews),
        ),
        CapturedSteps(trainee, optimizer) if captured else None,
    )
    with closing(loop.journal):
        loop.run()
    return loop


def forget_states(name: str, out: Path) -> None:
    """Remove a stage's states; its weights are saved."""
    shutil.rmtree(out / "state" / name, ignore_errors=True)


def _settings(settings: Any, run: Run) -> dict[str, Any]:
    """What must not change when a stage is resumed; its length may."""
    stage, world = asdict(settings), asdict(run.world)
    del world["workers"]
    return {
        "length": stage.pop("seconds"),
        "stage": stage,
        "world": world,
        "seed": run.seed,
        "start": run.start,
    }
