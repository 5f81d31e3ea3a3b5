"""Compare an exported stage with torch, in onnxruntime on the CPU, at shapes it was not recorded at."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from twinshot_engine.errors import EngineFilesError
from twinshot_engine.families.model import Model
from twinshot_engine.files import tell
from twinshot_engine.tensorrt.disk import write_whole
from twinshot_engine.tensorrt.stages import Stage, sample_inputs

TOLERANCE = 1e-4
"""Largest accepted difference in fp32, relative to the largest value."""

BATCHES = (1, 3)


@torch.no_grad()
def check_onnx(graph: Path, stage: Stage, model: Model) -> float:
    """Run a stage in onnxruntime and in torch, for two batch sizes and two prompt lengths.

    Args:
        graph: the exported stage, in fp32.
        stage: it.
        model: that it was taken from.

    Returns:
        The largest :func:`difference`.

    Raises:
        EngineFilesError: they differ by more than :data:`TOLERANCE`, or onnxruntime cannot run the graph.
    """
    session = _open(graph)
    buckets = sorted({stage.buckets.length(0), stage.buckets.length(stage.buckets.amount - 1)})
    worst = 0.0
    for batch, tokens in product(BATCHES, buckets):
        inputs = sample_inputs(stage, model, batch, tokens, seed=batch)
        outputs = run_onnx(session, stage, inputs)
        pairs = zip(outputs, run_torch(stage, inputs), strict=True)
        found = max(difference(output, expected) for output, expected in pairs)
        if not found <= TOLERANCE:
            raise EngineFilesError(
                f"The exported {stage.name} differs by {found:.1e} from torch for a batch of {batch} and "
                f"{tokens} tokens: at most {TOLERANCE:.0e} is accepted."
            )
        worst = max(worst, found)
    return worst


@torch.no_grad()
def run_torch(stage: Stage, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Run a stage itself."""
    # A model may change its arguments' memory.
    found = stage.module(*(tensor.clone() for tensor in inputs))
    return found if isinstance(found, tuple) else (found,)


def run_onnx(session: Any, stage: Stage, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Run a stage in an open onnxruntime session; what its graph dropped as unused is not fed."""
    wanted = {each.name for each in session.get_inputs()}
    named = zip((port.name for port in stage.inputs), inputs, strict=True)
    feeds = {name: tensor.numpy() for name, tensor in named if name in wanted}
    return tuple(torch.from_numpy(np.asarray(value)) for value in session.run(None, feeds))


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected value; infinite if anything is not a number.

    Bytes are compared on average: one near a boundary may be rounded to its neighbour, and not further.
    """
    wide, right = found.double(), expected.double()
    gaps, most = (wide - right).abs(), right.abs().max().clamp(min=1e-30)
    if expected.dtype == torch.uint8:
        return float("inf") if gaps.max() > 1 else float(gaps.mean() / most)
    worst = float(gaps.max() / most)
    return worst if np.isfinite(worst) else float("inf")


class Reference(NamedTuple):
    """What a stage in fp32 makes of one input."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def write(self, path: Path) -> None:
        """Keep it in a file.

        Raises:
            EngineFilesError: the disk is full.
        """
        named = {f"input {i:02}": tensor.contiguous() for i, tensor in enumerate(self.inputs)}
        named |= {f"output {i:02}": tensor.contiguous() for i, tensor in enumerate(self.outputs)}
        write_whole(path, save(named))

    @classmethod
    def read(cls, path: Path) -> Reference:
        """Read it again."""
        named = load_file(path)
        parts = (
            [named[name] for name in sorted(named) if name.startswith(kind)] for kind in ("input", "output")
        )
        return cls(*map(tuple, parts))


def make_reference(stage: Stage, model: Model) -> Reference:
    """Run a stage of a model in fp32 on one image with a short prompt."""
    inputs = sample_inputs(stage, model, 1, stage.buckets.length(0))
    return Reference(inputs, run_torch(stage, inputs))


def compare_precision(reference: Reference, stage: Stage) -> float:
    """Run a stage in its own precision and compare it with fp32.

    Returns:
        The mean difference, relative to the mean size of what is expected.

    Raises:
        EngineFilesError: what comes out is not finite.
    """
    pairs = zip(reference.inputs, stage.inputs, strict=True)
    found = run_torch(stage, [tensor.to(port.dtype) for tensor, port in pairs])
    worst = 0.0
    for output, expected in zip(found, reference.outputs, strict=True):
        wide = output.double()
        if not wide.isfinite().all():
            raise EngineFilesError(f"The {stage.name} overflows in this precision: bf16 is accepted.")
        gap = (wide - expected.double()).abs().mean() / expected.double().abs().mean().clamp(min=1e-30)
        worst = max(worst, float(gap))
    return worst


def _open(graph: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # shapes that it cannot infer are no news
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base but this
        raise EngineFilesError(f"onnxruntime cannot read '{graph}': {tell(error)}.") from error
