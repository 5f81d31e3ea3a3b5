"""How fast TwinFlow trains the miniature, beside plain flow matching: the same model, batch and machine.

    PYTHONPATH=kernels:engine:distill:benchmarks python benchmarks/training.py --batch 512

Both take steps on noise in place of data, one after the other in one process, as CUDA graphs where there is
a GPU: flow matching on the transformer alone, and the objective of `configs/miniature.toml`. A flow-matching
step is three forward passes a row; the objective's count is `Objective.work`. `share` is TwinFlow's rate of
passes (rows a second times passes a row) over flow matching's. Prints a JSON row for each, with peak memory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from twinshot_distill.averages import RunningAverage, frozen_copy
from twinshot_distill.losses import flow_matching, mix
from twinshot_distill.miniature.configuration import Run, TwinFlowSettings
from twinshot_distill.miniature.dataset import SHORT
from twinshot_distill.miniature.denoiser import Condition, Denoiser, compile_blocks, in_chunks, velocity
from twinshot_distill.objective import Networks
from twinshot_distill.optimizer import Optimizer, OptimizerSettings
from twinshot_distill.step import loss_terms
from twinshot_distill.stepping import CapturedSteps, EagerSteps
from twinshot_engine.transformer.single_stream import SingleStreamTransformer

_OPTIMIZER = OptimizerSettings(learning_rate=1e-4)
_WARM_UP = 6


class FlowMatching:
    """Plain flow matching on the transformer, and the moving average that every trainer keeps."""

    def __init__(self, student: SingleStreamTransformer, x: Tensor, condition: Condition) -> None:
        self.student, self._x, self._condition = student, x, condition
        self._average = RunningAverage.of(frozen_copy(student), student, 0.995)

    def loss_terms(self, step: int) -> Mapping[str, Tensor]:
        """The loss of a batch."""
        return self.terms(self.prepare(step))

    def prepare(self, step: int) -> int:
        """Nothing: the data is always the same."""
        del step
        return 0

    def terms(self, kind: int) -> Mapping[str, Tensor]:
        """The loss of a batch."""
        del kind
        x = self._x
        t, z = torch.rand(len(x), device=x.device), torch.randn_like(x)
        return {"loss": flow_matching(velocity(self.student, mix(x, z, t), t, t, self._condition), x, z)}

    def after_step(self) -> None:
        """Average the weights."""
        self._average.update()

    def tensors(self) -> Mapping[str, Tensor]:
        """Nothing is saved."""
        return {}

    def numbers(self) -> Mapping[str, float]:
        """Nothing is saved."""
        return {}

    def restore(self, numbers: Mapping[str, float]) -> None:
        """Nothing was saved."""


class TwinFlow(FlowMatching):
    """The miniature's objective, with its teacher and the frozen start that guides it."""

    def __init__(
        self,
        student: SingleStreamTransformer,
        x: Tensor,
        condition: Condition,
        settings: TwinFlowSettings,
        *,
        compiled: bool,
    ) -> None:
        super().__init__(student, x, condition)
        teacher, start = frozen_copy(student), frozen_copy(student)
        follower = RunningAverage.of(teacher, student, settings.objective.teacher_decay)
        if compiled:
            compile_blocks(teacher)
            compile_blocks(start)
        chunk = len(x) // 4
        self._networks: Networks[Condition] = Networks(
            in_chunks(student, chunk), in_chunks(teacher, chunk), in_chunks(start, chunk), follower.update
        )
        self._objective = settings.objective

    def terms(self, kind: int) -> Mapping[str, Tensor]:
        """The terms of a batch."""
        del kind
        return loss_terms(self._networks, self._objective, self._x, self._condition, self._condition)


def step_seconds(trainee: FlowMatching, count: int) -> float:
    """Seconds a step takes, by the median of `count` after warming up."""
    named = dict(trainee.student.named_parameters())
    cuda = next(iter(named.values())).is_cuda
    optimizer = Optimizer(named, _OPTIMIZER, capturable=cuda)
    steps = CapturedSteps(trainee, optimizer) if cuda else EagerSteps(trainee, optimizer)
    seconds = []
    for index in range(_WARM_UP + count):
        started = time.perf_counter()
        _, norm = steps.gradients(index)
        steps.move(optimizer.rate(index, 0.0))
        if cuda:
            torch.cuda.synchronize()
        if not bool(torch.isfinite(norm)):
            raise RuntimeError(f"the gradient of step {index} is not finite")
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[_WARM_UP:])[count // 2]


def measure(batch: int, device: torch.device, *, compiled: bool, count: int) -> list[dict[str, Any]]:
    """Time both and return a row for each."""
    settings = replace(Run().twinflow, batch=batch)
    x = torch.randn(batch, 8, 32, 32, device=device)
    condition = Condition(
        torch.randn(batch, SHORT, 192, device=device), torch.full((batch,), 20, device=device)
    )
    rows: list[dict[str, Any]] = []
    for method in ("flow-matching", "twinflow"):
        student = Denoiser().transformer.to(device)
        if method == "flow-matching":
            trainee, work = FlowMatching(student, x, condition), 3.0
        else:
            trainee = TwinFlow(student, x, condition, settings, compiled=compiled)
            work = settings.objective.work
        if compiled:
            compile_blocks(student)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        seconds = step_seconds(trainee, count)
        rows.append(_row(method, batch, seconds, work, device))
        del trainee, student
    rate = [row["rows_per_second"] * row["passes_per_row"] for row in rows]
    rows[1]["share"] = round(rate[1] / rate[0], 3)
    return rows


def _row(method: str, batch: int, seconds: float, work: float, device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    return {
        "benchmark": "training",
        "method": method,
        "gpu": torch.cuda.get_device_name() if cuda else "cpu",
        "batch": batch,
        "step_ms": round(1000 * seconds, 2),
        "rows_per_second": round(batch / seconds, 1),
        "passes_per_row": work,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "versions": {"torch": torch.__version__},
    }


def main(
    batch: Annotated[int, typer.Option(help="Rows a step, a multiple of 4.")] = 512,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    compiled: Annotated[bool, typer.Option(help="Compile the blocks.")] = True,
    count: Annotated[int, typer.Option(help="Timed steps.")] = 30,
) -> None:
    """Measure and print."""
    torch.set_float32_matmul_precision("high")
    for row in measure(batch, torch.device(device), compiled=compiled, count=count):
        print(json.dumps(row))


if __name__ == "__main__":
    typer.run(main)
