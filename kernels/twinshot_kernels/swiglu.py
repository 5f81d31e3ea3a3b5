"""Gated activation: ``y = silu(gate) * up``.

The widest tensors of a block pass through here. It must read both inputs once and write one output: 6
bytes an element in bf16, 5 when the output is fp8. ``gate`` and ``up`` are usually the halves of one packed
projection; they are read where they lie.

Measured: see benchmarks/results (kernels).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._rows import check_same_shape
from twinshot_kernels.quantize_rows import quantize_rows_reference


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return functional.silu(gate.float()) * up.float()


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """Gate ``up`` in plain torch; see :func:`swiglu`."""
    return _gated(gate, up).to(gate.dtype).contiguous()


def swiglu_fp8_reference(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gate ``up`` and quantise in plain torch, without rounding in between; see :func:`swiglu_fp8`."""
    return quantize_rows_reference(_gated(gate, up))


_swiglu = register("swiglu", swiglu_reference, swiglu_reference)
_swiglu_fp8 = register("swiglu_fp8", swiglu_fp8_reference, swiglu_fp8_reference)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Multiply ``up`` by the SiLU of ``gate``.

    Args:
        gate: ``[..., N]``; rows may be strided.
        up: the same shape and type.

    Returns:
        A tensor of that shape and type; arithmetic is fp32.

    Raises:
        ValueError: if the shapes differ.

    Source: Shazeer, arXiv 2002.05202.
    """
    check_same_shape("up", up, gate)
    if needs_gradient(gate, up):
        return swiglu_reference(gate, up)
    result: Tensor = _swiglu(gate, up)
    return result


def swiglu_fp8(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Do as :func:`swiglu`, with the result quantised to fp8 by row.

    Args:
        gate: ``[..., N]``; rows may be strided.
        up: the same shape and type.

    Returns:
        ``[..., N]`` E4M3 and ``[..., 1]`` fp32 row scales.

    Raises:
        ValueError: if the shapes differ.
    """
    check_same_shape("up", up, gate)
    if needs_gradient(gate, up):
        return swiglu_fp8_reference(gate, up)
    result: tuple[Tensor, Tensor] = _swiglu_fp8(gate, up)
    return result
