"""fp8 as TensorRT wants it: E4M3 between QuantizeLinear and DequantizeLinear, with scales that are constants.

The engine's own fp8 scales every row of an activation by what it holds. TensorRT takes one scale for an
activation, known when the engine is built, so a few pictures are drawn beforehand to see how large they
become. Weights have a scale an output channel in both. What is quantised is the same: the transformer's
projections, not its embedders, attention or final layer. Source: Micikevicius et al., arXiv 2209.05433.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn
from torch.nn import functional

from twinshot_engine.families.model import Model
from twinshot_engine.precision import FP8, Projection
from twinshot_engine.tensorrt.stages import Stage

LARGEST = torch.finfo(FP8).max
_SMALLEST = 1e-12
_MARGIN = 1.1
"""Activations may become this much larger than any that was seen before they are cut off."""

_PROMPTS = (
    "a red apple on a table",
    "two blue cars left of a green tree in the snow, seen from above",
    "a portrait of an old fisherman at dusk, detailed, film grain",
)

Peaks = Mapping[str, float]
"""The largest absolute value that each projection's input had, by the name of its weight."""


@torch.no_grad()
def find_peaks(stage: Stage, model: Model) -> Peaks:
    """Draw a few pictures at every advertised step count and watch the inputs of a transformer's projections.

    Args:
        stage: a transformer's, with weights.
        model: that it was taken from.
    """
    peaks: dict[str, float] = {}

    def watch(name: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        peaks[name] = max(peaks.get(name, 0.0), float(inputs[0].abs().max()))

    with ExitStack() as hooks:
        for name, module in _projections(stage):
            handle = module.register_forward_pre_hook(partial(watch, name))
            hooks.callback(handle.remove)
        for seed, prompt in enumerate(_PROMPTS):
            _draw(stage, model, prompt, seed)
    return peaks


def quantize_graph(graph: Any, peaks: Peaks) -> None:
    """Quantise every product of a graph of onnx_ir whose weight has a peak, in place."""
    for node in list(graph):
        if node.op_type != "MatMul":
            continue
        transpose = node.inputs[1].producer()
        weight = transpose.inputs[0] if transpose is not None and transpose.op_type == "Transpose" else None
        if weight is not None and weight.name in peaks:
            _quantize_product(graph, node, transpose, peaks[weight.name])


@contextmanager
def quantized(stage: Stage, peaks: Peaks) -> Iterator[None]:
    """Let a stage compute in torch what its quantised graph does, to see what that costs."""
    changed = [(module, peaks[name]) for name, module in _projections(stage) if name in peaks]
    try:
        for module, peak in changed:
            module.forward = partial(_project, module, peak)  # type: ignore[method-assign]
        yield
    finally:
        for module, _ in changed:
            del module.forward


def _projections(stage: Stage) -> Iterator[tuple[str, Projection]]:
    for name, module in stage.module.named_modules():
        if isinstance(module, Projection):
            yield f"{name}.weight", module


def _draw(stage: Stage, model: Model, prompt: str, seed: int) -> None:
    caption = model.encode(*model.tokenizer.pad(model.tokenizer.encode(prompt)))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(stage.inputs[0].shape(1, 0), generator=generator)
    for passes in model.passes.values():
        latents = noise
        for each in passes:
            latents = stage.module(latents, noise, each.modulation, each.weights, *caption)


def _activation_scale(peak: float) -> float:
    return max(peak * _MARGIN / LARGEST, _SMALLEST)


def _quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round ``[out, in]`` to E4M3 with a scale ``[out]`` fp32."""
    wide = weight.detach().float()
    scale = (wide.abs().amax(1) / LARGEST).clamp(min=_SMALLEST)
    return (wide / scale[:, None]).to(FP8), scale


def _project(module: Projection, peak: float, x: Tensor) -> Tensor:
    scale = _activation_scale(peak)
    rounded = (x.float() / scale).clamp(-LARGEST, LARGEST).to(FP8).float() * scale
    values, scales = _quantize_weight(module.weight)
    return functional.linear(rounded, values.float() * scales[:, None]).to(x.dtype)


def _quantize_product(graph: Any, node: Any, transpose: Any, peak: float) -> None:
    x, weight = node.inputs[0], transpose.inputs[0]
    values, scales = _quantize_weight(weight.const_value.raw)
    names = weight.name
    scale = _constant(graph, f"{names}.input_scale", torch.tensor(_activation_scale(peak)))
    zero = _constant(graph, f"{names}.input_zero", torch.zeros((), dtype=FP8))
    stored = _constant(graph, f"{names}.fp8", values)
    row_scale = _constant(graph, f"{names}.fp8_scale", scales)
    kind = {"output_dtype": weight.dtype}
    quantize = ir.node("QuantizeLinear", [x, scale, zero])
    restore = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero], attributes=kind)
    unpack = ir.node("DequantizeLinear", [stored, row_scale], attributes={"axis": 0, **kind})
    graph.insert_before(node, [quantize, restore])
    graph.insert_before(transpose, unpack)
    for value, like in ((restore.outputs[0], x), (unpack.outputs[0], weight)):
        value.dtype, value.shape = like.dtype, like.shape
    quantize.outputs[0].dtype, quantize.outputs[0].shape = ir.DataType.FLOAT8E4M3FN, x.shape
    node.replace_input_with(0, restore.outputs[0])
    transpose.replace_input_with(0, unpack.outputs[0])
    if not weight.uses():
        del graph.initializers[weight.name]


def _constant(graph: Any, name: str, tensor: Tensor) -> Any:
    value = ir.Value(name=name, const_value=TorchTensor(tensor, name=name))
    graph.register_initializer(value)
    return value
