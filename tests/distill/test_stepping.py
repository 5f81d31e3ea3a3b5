"""Recorded steps: the same training as eager ones, each kind with graphs of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twinshot_distill.averages import RunningAverage, frozen_copy
from twinshot_distill.optimizer import Optimizer, OptimizerSettings
from twinshot_distill.stepping import CapturedSteps, EagerSteps, Steps


class Regression:
    """Learns to turn its inputs round; odd steps are of a kind with more rows; some can be poisoned."""

    def __init__(self, device: str) -> None:
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8).to(device)
        self.averaged = frozen_copy(self.layer)
        self.average = RunningAverage.of(self.averaged, self.layer, 0.9)
        self.scale = torch.ones((), device=device)
        self.prepared: list[int] = []

    def loss_terms(self, step: int) -> Mapping[str, Tensor]:
        return self.terms(self.prepare(step))

    def prepare(self, step: int) -> int:
        self.prepared.append(step)
        return 16 if step % 2 else 32

    def terms(self, kind: int) -> Mapping[str, Tensor]:
        inputs = torch.randn(kind, 8, device=self.scale.device)
        error = (self.layer(inputs) - inputs.flip(1)).square()
        return {"low": error[:, :4].mean() * self.scale, "high": error[:, 4:].mean()}

    def after_step(self) -> None:
        self.average.update()

    def tensors(self) -> Mapping[str, Tensor]:
        return {"weight": self.layer.weight, "average": self.averaged.weight}

    def numbers(self) -> Mapping[str, float]:
        return {"decay": self.average.decay}

    def restore(self, numbers: Mapping[str, float]) -> None:
        self.average.decay = numbers["decay"]


class Replay:
    """Stands in for a graph where there is no GPU: it does again what was recorded."""

    def __init__(self, work: Callable[[], None], before: Callable[[], None]) -> None:
        self._work, self._before = work, before

    def replay(self) -> None:
        self._before()
        self._work()


class PlayedSteps(CapturedSteps):
    """The logic of recorded steps on the CPU."""

    def __init__(self, trainee: Regression, optimizer: Optimizer) -> None:
        self._trainee, self._optimizer = trainee, optimizer
        self._kinds, self._now = {}, self._none()
        self.recorded = 0

    @staticmethod
    def _none() -> Any:
        from twinshot_distill import stepping

        return stepping._Recorded()

    @contextmanager
    def _own_stream(self) -> Iterator[None]:
        yield

    def _record(self, work: Callable[[], None]) -> Replay:
        self.recorded += 1
        computes = self._now.gradients is None
        # A graph's gradients are written anew, not added to.
        return Replay(work, self._optimizer.forget if computes else lambda: None)


def trained(
    device: str, steps_of: Callable[[Regression, Optimizer], Steps], poisoned: int, name: Any
) -> tuple[Regression, list[float], Steps]:
    trainee = Regression(device)
    settings = OptimizerSettings(name, learning_rate=0.02, warm_up=3)
    optimizer = Optimizer(dict(trainee.layer.named_parameters()), settings, capturable=device == "cuda")
    steps, losses = steps_of(trainee, optimizer), []
    for step in range(16):
        torch.manual_seed(step)
        trainee.scale.fill_(float("nan") if step == poisoned else 1.0)
        terms, norm = steps.gradients(step)
        if torch.isfinite(norm):
            losses.append(sum(float(term) for term in terms.values()))
            steps.move(optimizer.rate(step, 0.0))
        else:
            steps.skip()
    return trainee, losses, steps


@pytest.mark.parametrize("name", ["adamw", "radam"])
@pytest.mark.parametrize("poisoned", [-1, 3, 12])
def test_recorded_steps_train_as_eager_ones_do(name: str, poisoned: int) -> None:
    eager, told, _ = trained("cpu", EagerSteps, poisoned, name)
    played, heard, steps = trained("cpu", PlayedSteps, poisoned, name)
    assert told == heard
    assert len(told) == 16 - (poisoned >= 0)
    assert not torch.allclose(eager.layer.weight, Regression("cpu").layer.weight)
    for key, tensor in eager.tensors().items():
        assert torch.equal(tensor, played.tensors()[key]), key
    assert eager.average.decay == played.average.decay
    assert played.prepared == list(range(16))
    assert isinstance(steps, PlayedSteps)
    assert steps.recorded == 4, "two kinds, a graph for the gradients and one for the move each"


def test_steps_that_compile_or_record_are_not_settled() -> None:
    trainee = Regression("cpu")
    optimizer = Optimizer(dict(trainee.layer.named_parameters()), OptimizerSettings())
    steps, settled = PlayedSteps(trainee, optimizer), []
    for step in range(12):
        steps.gradients(step)
        steps.move(0.01)
        settled.append(steps.settled)
    assert settled == [False] * 8 + [True] * 4, "three eager steps and the recorded one, of both kinds"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("poisoned", [-1, 12])
def test_graphs_on_a_gpu_train_as_eager_steps_do(name: str, poisoned: int) -> None:
    eager, told, _ = trained("cuda", EagerSteps, poisoned, name)
    captured, heard, _ = trained("cuda", CapturedSteps, poisoned, name)
    assert told == pytest.approx(heard, rel=1e-4)
    for key, tensor in eager.tensors().items():
        torch.testing.assert_close(tensor, captured.tensors()[key], rtol=1e-3, atol=1e-4)
    assert eager.average.decay == captured.average.decay
