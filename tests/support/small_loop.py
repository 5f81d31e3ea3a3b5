"""The loop on a network of one layer, for tests of what happens around its steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twinshot_distill.averages import RunningAverage, frozen_copy, parameters_of
from twinshot_distill.checkpointing import Keeper
from twinshot_distill.journal import Journal
from twinshot_distill.loop import Length, Loop, LoopSettings
from twinshot_distill.optimizer import Optimizer, OptimizerSettings

SETTINGS: dict[str, Any] = {"length": {"steps": 8}, "objective": {"order": 2}, "seed": 3}


class Regression:
    """Learns to turn its inputs round; some steps can be poisoned."""

    def __init__(self, poisoned: range = range(0)) -> None:
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.averaged = frozen_copy(self.layer)
        self.average = RunningAverage.of(self.averaged, self.layer, 0.9)
        self.poisoned = poisoned

    def loss_terms(self, step: int) -> Mapping[str, Tensor]:
        inputs = torch.randn(16, 4)
        error = (self.layer(inputs) - inputs.flip(1)).square().mean()
        return {"loss": error * (float("nan") if step in self.poisoned else 1.0)}

    def after_step(self) -> None:
        self.average.update()

    def tensors(self) -> Mapping[str, Tensor]:
        return parameters_of(layer=self.layer, average=self.averaged)

    def numbers(self) -> Mapping[str, float]:
        return {"decay": self.average.decay}

    def restore(self, numbers: Mapping[str, float]) -> None:
        self.average.decay = numbers["decay"]


def loop_of(
    folder: Path,
    steps: int,
    *,
    optimizer: OptimizerSettings | None = None,
    poisoned: range = range(0),
    settings: Mapping[str, Any] = SETTINGS,
    **options: Any,
) -> tuple[Loop, Regression]:
    trainee = Regression(poisoned)
    chosen = optimizer or OptimizerSettings(learning_rate=0.05, warm_up=2, final_share=0.1)
    folder.mkdir(exist_ok=True)
    loop = Loop(
        trainee,
        Optimizer(dict(trainee.layer.named_parameters()), chosen),
        LoopSettings(Length(steps), seed=3, **options),
        Keeper(folder / "state", settings),
        Journal(folder, "test", rows=16, every=0.0),
    )
    return loop, trainee


def weights(trainee: Regression) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in trainee.tensors().values()]
