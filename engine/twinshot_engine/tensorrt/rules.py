"""What TensorRT wants to see in another form than the exporter writes it; the values stay the same."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor

_DOUBLING = {"strides": (2, 2), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}

# Output pixel 2i + r of a transposed convolution of stride 2 reads source pixels i - 1, i and i + 1 through
# these of its four taps; -1 is none.
_TAPS = ((3, 1, -1), (-1, 2, 0))


def rewrite(graph: Any) -> None:
    """Apply every rule to a graph of onnx_ir, in place."""
    for node in list(graph):
        if node.op_type == "RMSNormalization":
            _align_norm(graph, node)
        elif node.op_type == "ConvTranspose" and node.inputs[0].dtype == ir.DataType.BFLOAT16:
            _split_phases(graph, node)


def _align_norm(graph: Any, node: Any) -> None:
    """Cast what an RMS norm reads to the type of its scale.

    ONNX lets the two differ, and returns the type of the scale; TensorRT takes that of the input.
    """
    x, scale = node.inputs
    if x.dtype == scale.dtype:
        return
    cast = ir.node("Cast", [x], attributes={"to": scale.dtype})
    cast.outputs[0].dtype, cast.outputs[0].shape = scale.dtype, x.shape
    graph.insert_before(node, cast)
    node.replace_input_with(0, cast.outputs[0])


def _split_phases(graph: Any, node: Any) -> None:
    """Write a transposed convolution that doubles the size as a convolution to four phases of the pixels.

    TensorRT for RTX 1.7 has no transposed convolution in bf16.
    """
    x, weight, bias = node.inputs
    given = {name: node.attributes[name].value for name in _DOUBLING if name in node.attributes}
    taps, offsets = _raw(weight), _raw(bias)
    doubles = {**_DOUBLING, **given} == _DOUBLING and tuple(weight.shape[2:]) == (4, 4)
    if not doubles or taps is None or offsets is None:
        return
    kernel = _add(graph, f"{weight.name}.phases", phases(taps))
    biases = _add(graph, f"{bias.name}.phases", offsets.repeat_interleave(4))
    conv = ir.node("Conv", [x, kernel, biases], attributes={"pads": [1, 1, 1, 1]})
    shuffle = ir.node("DepthToSpace", conv.outputs, attributes={"blocksize": 2, "mode": "CRD"})
    conv.outputs[0].dtype = x.dtype
    graph.insert_before(node, [conv, shuffle])
    old, new = node.outputs[0], shuffle.outputs[0]
    new.dtype, new.shape, name = old.dtype, old.shape, old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.name = name
    for value in (weight, bias):
        if not value.uses():
            del graph.initializers[value.name]


def phases(weight: Tensor) -> Tensor:
    """Sort the taps of a transposed convolution of stride 2 and padding 1 by the output pixels they serve.

    Args:
        weight: ``[in, out, 4, 4]``.

    Returns:
        ``[4 * out, in, 3, 3]``, a convolution with padding 1 whose channels are output, row and column phase.
    """
    padded = torch.nn.functional.pad(weight, (0, 1, 0, 1))  # tap -1 is zero
    taps = torch.tensor(_TAPS)
    picked = padded[:, :, taps[:, None, :, None], taps[None, :, None, :]]
    return picked.permute(1, 2, 3, 0, 4, 5).flatten(0, 2).contiguous()


def _raw(value: Any) -> Tensor | None:
    """The torch tensor of a weight; what the graph computes or the exporter folded has none."""
    raw = getattr(value.const_value, "raw", None)
    return raw.detach() if isinstance(raw, Tensor) else None


def _add(graph: Any, name: str, tensor: Tensor) -> Any:
    value = ir.Value(name=name, const_value=TorchTensor(tensor, name=name))
    graph.register_initializer(value)
    return value
