"""Residual and the norm behind it: ``x' = x + y``, ``h = x' / sqrt(mean(x'^2) + eps) * scale``.

The form of the text encoders. Apart, the sum and the norm move five tensors; together four: ``x`` and
``y`` are read, ``x'`` and ``h`` written. The fp8 form writes ``h`` in one byte an element. The norm reads
``x'`` after it was rounded, because that is what the next block will see.

Measured on an H100: 45.3 us at 4224x3840 in bf16, 2.87 TB/s, .99 of a copy (plain torch 476 us); with fp8
output 42.1 us, .94 of a copy (605 us).
"""

from __future__ import annotations

from torch import Tensor

from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._rows import (
    as_rows,
    as_vector,
    check_same_shape,
    check_vector,
    empty_fp8,
    empty_rows,
    load_row,
    row_tile,
    rows_per_image,
    scaled_norm,
    store_row,
)
from twinshot_kernels._triton import jit, tl
from twinshot_kernels.quantize_rows import quantize_rows_reference
from twinshot_kernels.rms_norm import normalise


def residual_norm_reference(x: Tensor, y: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add and normalise in plain torch; see :func:`residual_norm`."""
    total = (x.float() + y.float()).to(x.dtype).contiguous()
    return total, normalise(total, scale, eps).to(x.dtype)


def residual_norm_fp8_reference(
    x: Tensor, y: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Add, normalise and quantise in plain torch; see :func:`residual_norm_fp8`."""
    total = (x.float() + y.float()).to(x.dtype).contiguous()
    return total, *quantize_rows_reference(normalise(total, scale, eps))


@jit
def _residual_norm_kernel(
    x: tl.tensor,
    y: tl.tensor,
    scale: tl.tensor,
    total: tl.tensor,
    out: tl.tensor,
    row_scale: tl.tensor | None,
    x_stride: int,
    y_stride: int,
    scale_step: int,
    image_rows: int,
    width: int,
    eps: float,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    stream = load_row(x, row * x_stride, columns, width) + load_row(y, row * y_stride, columns, width)
    rounded = stream.to(total.dtype.element_ty)
    tl.store(total + row * width + columns, rounded, mask=columns < width)
    factor = load_row(scale, row // image_rows * scale_step, columns, width)
    h = scaled_norm(rounded.to(tl.float32), factor, width, eps)
    store_row(h, out, row_scale, row, columns, width)


def _run(x: Tensor, y: Tensor, scale: Tensor, eps: float, out: Tensor, row_scale: Tensor | None) -> Tensor:
    stream, branch, total = as_rows(x), as_rows(y), empty_rows(x)
    vector, step = as_vector(scale)
    count, width = stream.shape
    _residual_norm_kernel[(count,)](
        stream,
        branch,
        vector,
        total,
        out,
        row_scale,
        stream.stride(0),
        branch.stride(0),
        step,
        rows_per_image(x),
        width,
        eps,
        **row_tile(width),
    )
    return total


def _launch(x: Tensor, y: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    h = empty_rows(x)
    return _run(x, y, scale, eps, h, None), h


def _launch_fp8(x: Tensor, y: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    h, row_scale = empty_fp8(x)
    return _run(x, y, scale, eps, h, row_scale), h, row_scale


_residual_norm = register("residual_norm", residual_norm_reference, _launch)
_residual_norm_fp8 = register("residual_norm_fp8", residual_norm_fp8_reference, _launch_fp8)


def residual_norm(x: Tensor, y: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add a branch to the residual stream and normalise the sum for the next one.

    Args:
        x: ``[..., N]``, the stream.
        y: the same shape, the branch; both may have strided rows.
        scale: ``[N]``, or ``[B, 1, N]`` beside ``[B, rows, N]``; any floating type.
        eps: added to the mean square.

    Returns:
        The new stream and its scaled norm, both of the shape and type of ``x``; arithmetic is fp32.

    Raises:
        ValueError: if the shapes do not fit.
    """
    check_same_shape("y", y, x)
    check_vector("scale", scale, x)
    if needs_gradient(x, y, scale):
        return residual_norm_reference(x, y, scale, eps)
    result: tuple[Tensor, Tensor] = _residual_norm(x, y, scale, eps)
    return result


def residual_norm_fp8(x: Tensor, y: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Do as :func:`residual_norm`, with the norm quantised to fp8 by row.

    Args:
        x: ``[..., N]``, the stream.
        y: the same shape, the branch.
        scale: ``[N]`` or ``[B, 1, N]``.
        eps: added to the mean square.

    Returns:
        The new stream; ``[..., N]`` E4M3; ``[..., 1]`` fp32 row scales.

    Raises:
        ValueError: if the shapes do not fit.
    """
    check_same_shape("y", y, x)
    check_vector("scale", scale, x)
    if needs_gradient(x, y, scale):
        return residual_norm_fp8_reference(x, y, scale, eps)
    result: tuple[Tensor, Tensor, Tensor] = _residual_norm_fp8(x, y, scale, eps)
    return result
