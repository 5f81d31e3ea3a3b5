"""GELU by its tanh form: ``y = x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``.

In bf16 nobody needs it alone: :func:`linear_gelu` has it in the epilogue of the product before, where it
costs no pass. An fp8 product has no such epilogue, and what reads the result wants fp8 rows, so there one
kernel does both: it must read 2 bytes an element and write 1.

Measured: see benchmarks/results (kernels).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._rows import as_rows, empty_fp8, load_row, row_tile, store_row
from twinshot_kernels._triton import jit, tl
from twinshot_kernels.quantize_rows import quantize_rows_reference

TWICE_SLOPE = 2 * math.sqrt(2 / math.pi)
"""As ``(1 + tanh(z)) / 2 = sigmoid(2 z)``, one exponential is enough."""


@jit
def tanh_gelu(x: tl.tensor, twice_slope: float) -> tl.tensor:
    """Apply GELU in fp32."""
    return x / (1.0 + tl.exp(-twice_slope * (x + 0.044715 * x * x * x)))


def gelu_fp8_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """Apply GELU and quantise in plain torch, without rounding in between; see :func:`gelu_fp8`."""
    return quantize_rows_reference(functional.gelu(x.float(), approximate="tanh"))


@jit
def _gelu_kernel(
    x: tl.tensor,
    out: tl.tensor,
    row_scale: tl.tensor,
    stride: int,
    width: int,
    twice_slope: float,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    y = tanh_gelu(load_row(x, row * stride, columns, width), twice_slope)
    store_row(y, out, row_scale, row, columns, width)


def _launch_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    rows, (out, row_scale) = as_rows(x), empty_fp8(x)
    count, width = rows.shape
    _gelu_kernel[(count,)](rows, out, row_scale, rows.stride(0), width, TWICE_SLOPE, **row_tile(width))
    return out, row_scale


_gelu_fp8 = register("gelu_fp8", gelu_fp8_reference, _launch_fp8)


def gelu_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Apply GELU and quantise each row to fp8.

    Args:
        x: ``[..., N]``, any floating type; rows may be strided.

    Returns:
        ``[..., N]`` E4M3 and ``[..., 1]`` fp32 row scales; arithmetic is fp32.

    Source: Hendrycks and Gimpel, arXiv 1606.08415.
    """
    if needs_gradient(x):
        return gelu_fp8_reference(x)
    result: tuple[Tensor, Tensor] = _gelu_fp8(x)
    return result


def linear_gelu_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Project, then apply GELU, in plain torch; see :func:`linear_gelu`."""
    return functional.gelu(functional.linear(x, weight, bias), approximate="tanh")


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a linear layer and GELU; on CUDA cuBLASLt does both in one pass.

    Args:
        x: ``[..., K]``.
        weight: ``[O, K]`` in the type of ``x``.
        bias: ``[O]``, likewise.

    Returns:
        ``[..., O]``.
    """
    if not x.is_cuda or needs_gradient(x, weight, bias):
        return linear_gelu_reference(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    product = torch._addmm_activation(bias, rows, weight.t(), use_gelu=True)  # noqa: SLF001 -- no public form
    return product.view(*x.shape[:-1], weight.shape[0])
