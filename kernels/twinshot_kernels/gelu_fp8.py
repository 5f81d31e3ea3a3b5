"""GELU to fp8 rows: ``y = gelu(x)``, its tanh form, quantised with a scale a row.

The inner activation of an MLP whose projections are fp8: their product's epilogue cannot make the scale of a
row, so one pass does both. It must read 2 bytes an element and write 1.

Not measured alone yet.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._rows import as_rows, empty_fp8, load_row, row_tile, store_row
from twinshot_kernels._triton import jit, tl
from twinshot_kernels.quantize_rows import quantize_rows_reference


def gelu_fp8_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activate and quantise in plain torch, without rounding in between; see :func:`gelu_fp8`."""
    return quantize_rows_reference(functional.gelu(x.float(), approximate="tanh"))


@jit
def _gelu_fp8_kernel(
    x: tl.tensor, out: tl.tensor, row_scale: tl.tensor, stride: int, width: int, BLOCK: tl.constexpr
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    wide = load_row(x, row * stride, columns, width)
    # x (1 + tanh(z)) / 2 is x / (1 + exp(-2 z)): 1.5957691 is 2 sqrt(2 / pi).
    y = wide / (1.0 + tl.exp(-1.5957691216057308 * (wide + 0.044715 * wide * wide * wide)))
    store_row(y, out, row_scale, row, columns, width)


def _launch_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    rows, (out, row_scale) = as_rows(x), empty_fp8(x)
    count, width = rows.shape
    _gelu_fp8_kernel[(count,)](rows, out, row_scale, rows.stride(0), width, **row_tile(width))
    return out, row_scale


_gelu_fp8 = register("gelu_fp8", gelu_fp8_reference, _launch_fp8)


def gelu_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the tanh form of GELU and quantise each row to fp8.

    Args:
        x: ``[..., N]``, any floating type; rows may be strided.

    Returns:
        ``[..., N]`` E4M3 and ``[..., 1]`` fp32 row scales.

    Source: Hendrycks and Gimpel, arXiv 1606.08415.
    """
    if needs_gradient(x):
        return gelu_fp8_reference(x)
    result: tuple[Tensor, Tensor] = _gelu_fp8(x)
    return result
