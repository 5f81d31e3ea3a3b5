"""Write a stage down as ONNX, in standard operators, its weights in a file beside the graph.

``torch.export`` records the stage; while it does, our operations run their references, so what is recorded
are torch's operators. Attention becomes the operator Attention and RMS norms RMSNormalization (opset 23),
which TensorRT has kernels for and onnxruntime computes too.
"""

from __future__ import annotations

import importlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.onnx.errors import OnnxExporterError

from twinshot_engine.errors import EngineFilesError
from twinshot_engine.files import tell
from twinshot_engine.tensorrt.disk import replaced
from twinshot_engine.tensorrt.rules import rewrite
from twinshot_engine.tensorrt.stages import Stage

OPSET = 23
"""The first with Attention and RMSNormalization."""

GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"

Change = Callable[[Any], None]
"""Changes a graph of onnx_ir in place."""

_STANDARD = frozenset(("aten", "prims", "prim", "higher_order"))
_FAILED_NODE = re.compile(r"node %(\w+)")
_SAMPLE_BATCH = 2
_LARGEST_FOLDED = 8192
"""Most elements of a constant that is computed with at export."""


def export_stage(stage: Stage, folder: Path, change: Change = rewrite) -> Path:
    """Export a stage to ``folder``, which appears when it is complete.

    Args:
        stage: of a model on the CPU.
        folder: where :data:`GRAPH` and :data:`WEIGHTS` go.
        change: what is done to the graph before it is written.

    Returns:
        The graph's path.

    Raises:
        EngineFilesError: an operator has no ONNX form, or the disk is full.
    """
    with _without_noise():
        return _export(stage, folder, change)


def _export(stage: Stage, folder: Path, change: Change) -> Path:
    program = record(stage)
    try:
        onnx = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[port.name for port in stage.inputs],
            output_names=[port.name for port in stage.outputs],
            optimize=False,
            verbose=False,
        )
    except OnnxExporterError as error:
        raise _unsupported(stage, program, error) from error
    if onnx is None:
        raise EngineFilesError(f"The {stage.name} was not exported: torch gave no reason.")
    _simplify(onnx.model)
    change(onnx.model.graph)
    with replaced(folder) as part:
        part.mkdir()
        onnx.save(part / GRAPH, external_data=True)
    return folder / GRAPH


@torch.no_grad()
def record(stage: Stage) -> ExportedProgram:
    """Record a stage with open batch and prompt length.

    Raises:
        EngineFilesError: an operator is not one of torch's own.
    """
    # Of 0 and 1 torch would make special cases.
    tokens = stage.buckets.length(min(1, stage.buckets.amount - 1))
    shapes = (port.shape(_SAMPLE_BATCH, tokens) for port in stage.inputs)
    inputs = tuple(
        torch.zeros(shape, dtype=port.dtype) for shape, port in zip(shapes, stage.inputs, strict=True)
    )
    program = torch.export.export(stage.module, inputs, dynamic_shapes=_nested(stage), strict=False)
    for node in program.graph.nodes:
        if node.op == "call_function" and not _is_standard(node.target):
            raise EngineFilesError(_sentence(stage, node))
    return program


@contextmanager
def _without_noise() -> Iterator[None]:
    """Keep from the terminal what the exporter says about itself and about packages it can do without."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.__trace")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _nested(stage: Stage) -> tuple[Any, ...]:
    """Open sides as the module's arguments are grouped: the transformer's captions come as one."""
    sides = stage.open_sides()
    count = stage.module.forward.__code__.co_argcount - 1
    return (*sides[:count], sides[count:]) if len(sides) > count else sides


def _simplify(model: Any) -> None:
    """Fold small constants and fuse norms.

    The exporter's own optimiser does more, and too much: onnxscript 0.7.2 changed what SANA's decoder draws,
    and transposed weights, which for a while makes a second copy of the model in memory.
    """
    optimizer = importlib.import_module("onnxscript.optimizer")
    fusions = importlib.import_module("onnxscript.rewriter.onnx_fusions")
    passes = importlib.import_module("onnx_ir.passes.common")
    optimizer.fold_constants(model, should_fold=_is_small)
    optimizer.remove_unused_nodes(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    fusions.fuse(model)


def _is_small(node: Any) -> bool | None:
    """Refuse to compute with large constants; of others the optimiser thinks for itself."""
    constants = (value.const_value for value in node.inputs if value is not None)
    large = any(constant is not None and constant.size > _LARGEST_FOLDED for constant in constants)
    return False if large else None


def _is_standard(target: Any) -> bool:
    namespace = getattr(target, "namespace", None)
    return namespace is None or namespace in _STANDARD


def _unsupported(stage: Stage, program: ExportedProgram, error: BaseException) -> EngineFilesError:
    """Find the node that could not be translated, which only the messages of the errors' chain name."""
    names = [match[1] for each in _chain(error) if (match := _FAILED_NODE.search(str(each)))]
    if names:
        # The exporter takes operators apart first.
        for node in (*program.graph.nodes, *program.run_decompositions().graph.nodes):
            if node.name == names[0]:
                return EngineFilesError(_sentence(stage, node))
    return EngineFilesError(f"The {stage.name} cannot be written as ONNX: {tell(error)}.")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _sentence(stage: Stage, node: Any) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = [name for name, _ in stack.values() if name]
    where = path[-1] if path else "its top"
    return f"The {stage.name} uses {node.target} in {where}, which has no form in ONNX opset {OPSET}."
