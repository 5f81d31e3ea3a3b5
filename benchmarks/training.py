"""How fast TwinFlow trains the miniature, beside plain flow matching: the same model, batch and machine.

    PYTHONPATH=kernels:engine:distill:benchmarks python benchmarks/training.py --batch 512

Both take steps on noise in place of data, one after the other in one process: flow matching on the
transformer alone, and the objective of `configs/miniature.toml`. A flow-matching step is three forward passes
a row; the objective's count is `Objective.work`. `share` is TwinFlow's rate of passes (rows a second times
passes a row) over flow matching's. Prints one JSON row for each, with peak memory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from twinshot_distill.losses import flow_matching, mix
from twinshot_distill.miniature.configuration import Run
from twinshot_distill.miniature.dataset import SHORT, Captions
from twinshot_distill.miniature.denoiser import Condition, Denoiser, compile_blocks, velocity
from twinshot_distill.miniature.twinflow import TwinFlowTrainee
from twinshot_distill.optimizer import Optimizer, OptimizerSettings
from twinshot_distill.step import loss_terms

_OPTIMIZER = OptimizerSettings(learning_rate=1e-4)


def timed(step: Callable[[int], None], warm_up: int, count: int, device: torch.device) -> float:
    """Seconds a step takes, by the median of `count` after warming up."""
    seconds = []
    for index in range(warm_up + count):
        started = time.perf_counter()
        step(index)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[warm_up:])[count // 2]


def flow_step(model: Denoiser, x: Tensor, condition: Condition, *, compiled: bool) -> Callable[[int], None]:
    """One step of plain flow matching on the transformer."""
    optimizer = Optimizer(dict(model.transformer.named_parameters()), _OPTIMIZER)
    if compiled:
        compile_blocks(model.transformer)

    def step(index: int) -> None:
        t, z = torch.rand(len(x), device=x.device), torch.randn_like(x)
        predicted = velocity(model.transformer, mix(x, z, t), t, t, condition)
        torch.autograd.backward(flow_matching(predicted, x, z))
        optimizer.step(index, 0.0)

    return step


def twinflow_step(
    trainee: TwinFlowTrainee, x: Tensor, condition: Condition, run: Run
) -> Callable[[int], None]:
    """One step of the miniature's objective."""
    optimizer = Optimizer(dict(trainee.student.named_parameters()), _OPTIMIZER)
    if run.compiled:
        trainee.compile()

    def step(index: int) -> None:
        terms = loss_terms(trainee.networks, run.twinflow.objective, x, condition, condition)
        torch.autograd.backward(sum(terms.values(), x.new_zeros(())))
        optimizer.step(index, 0.0)
        trainee.after_step()

    return step


class _NoData:
    """The benchmark hands out its own batch."""

    position = 0

    def renew(self, step: int) -> None:
        """Nothing to renew."""

    def refill(self, position: int) -> None:
        """Nothing to hold."""

    def sample(self, count: int, width: int) -> tuple[Tensor, Captions]:
        """Not asked for."""
        raise NotImplementedError(f"{count} rows of {width} tokens")


def measure(batch: int, device: torch.device, *, compiled: bool, count: int) -> list[dict[str, Any]]:
    """Time both and return a row for each."""
    run = Run(twinflow=replace(Run().twinflow, batch=batch), compiled=compiled)
    x = torch.randn(batch, 8, 32, 32, device=device)
    condition = Condition(
        torch.randn(batch, SHORT, 192, device=device), torch.full((batch,), 20, device=device)
    )
    rows: list[dict[str, Any]] = []
    for method in ("flow-matching", "twinflow"):
        model = Denoiser().to(device)
        if method == "flow-matching":
            step, work = flow_step(model, x, condition, compiled=compiled), 3.0
        else:
            tokenizer: Any = None
            trainee = TwinFlowTrainee(model, _NoData(), tokenizer, run.twinflow)
            step, work = twinflow_step(trainee, x, condition, run), run.twinflow.objective.work
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = timed(step, 5, count, device)
        rows.append(_row(method, batch, seconds, work, device))
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
