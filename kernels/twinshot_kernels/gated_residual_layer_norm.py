"""Gated residual and the layer norm behind it: ``x' = x + gain * y``, ``h = norm(x') * scale + shift``.

How blocks of dual-stream transformers end and begin; ``scale`` is ``1 + modulation`` of the next sub-layer,
and ``norm`` takes away the mean and divides by the standard deviation. It must move four tensors the size of
``x``: ``x`` and ``y`` are read, ``x'`` and ``h`` written; plain torch moves 14 and more. The fp8 form writes
``h`` in one byte an element. The norm reads ``x'`` after it was rounded, because that is what the next block
will see.

Measured on an H100: 10.7 us at 1024x2240 with fp8 output.
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
    shifted_norm,
    store_row,
)
from twinshot_kernels._triton import jit, tl
from twinshot_kernels.layer_norm import centre_and_scale
from twinshot_kernels.quantize_rows import quantize_rows_reference


def _add(x: Tensor, y: Tensor, gain: Tensor) -> Tensor:
    return (x.float() + gain.float() * y.float()).to(x.dtype).contiguous()


def gated_residual_layer_norm_reference(
    x: Tensor, y: Tensor, gain: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Gate, add and normalise in plain torch; see :func:`gated_residual_layer_norm`."""
    total = _add(x, y, gain)
    return total, centre_and_scale(total, scale, shift, eps).to(x.dtype)


def gated_residual_layer_norm_fp8_reference(
    x: Tensor, y: Tensor, gain: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gate, add, normalise and quantise in plain torch; see :func:`gated_residual_layer_norm_fp8`."""
    total = _add(x, y, gain)
    return total, *quantize_rows_reference(centre_and_scale(total, scale, shift, eps))


@jit
def _gated_residual_layer_norm_kernel(
    x: tl.tensor,
    y: tl.tensor,
    gain: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    total: tl.tensor,
    out: tl.tensor,
    row_scale: tl.tensor | None,
    x_stride: int,
    y_stride: int,
    gain_step: int,
    scale_step: int,
    shift_step: int,
    image_rows: int,
    width: int,
    eps: float,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    image = row // image_rows
    branch = load_row(y, row * y_stride, columns, width) * load_row(gain, image * gain_step, columns, width)
    stream = load_row(x, row * x_stride, columns, width) + branch
    rounded = stream.to(total.dtype.element_ty)
    tl.store(total + row * width + columns, rounded, mask=columns < width)
    factor = load_row(scale, image * scale_step, columns, width)
    offset = load_row(shift, image * shift_step, columns, width)
    h = shifted_norm(rounded.to(tl.float32), factor, offset, columns, width, eps)
    store_row(h, out, row_scale, row, columns, width)


def _run(
    x: Tensor,
    y: Tensor,
    gain: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    out: Tensor,
    row_scale: Tensor | None,
) -> Tensor:
    stream, branch, total = as_rows(x), as_rows(y), empty_rows(x)
    (gains, gain_step), (scales, scale_step), (shifts, shift_step) = map(as_vector, (gain, scale, shift))
    count, width = stream.shape
    _gated_residual_layer_norm_kernel[(count,)](
        stream,
        branch,
        gains,
        scales,
        shifts,
        total,
        out,
        row_scale,
        stream.stride(0),
        branch.stride(0),
        gain_step,
        scale_step,
        shift_step,
        rows_per_image(x),
        width,
        eps,
        **row_tile(width),
    )
    return total


def _launch(
    x: Tensor, y: Tensor, gain: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    h = empty_rows(x)
    return _run(x, y, gain, scale, shift, eps, h, None), h


def _launch_fp8(
    x: Tensor, y: Tensor, gain: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    h, row_scale = empty_fp8(x)
    return _run(x, y, gain, scale, shift, eps, h, row_scale), h, row_scale


_gated_residual_layer_norm = register(
    "gated_residual_layer_norm", gated_residual_layer_norm_reference, _launch
)
_gated_residual_layer_norm_fp8 = register(
    "gated_residual_layer_norm_fp8", gated_residual_layer_norm_fp8_reference, _launch_fp8
)


def _check(x: Tensor, y: Tensor, gain: Tensor, scale: Tensor, shift: Tensor) -> None:
    check_same_shape("y", y, x)
    for name, vector in (("gain", gain), ("scale", scale), ("shift", shift)):
        check_vector(name, vector, x)


def gated_residual_layer_norm(
    x: Tensor, y: Tensor, gain: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Add a gated branch to the residual stream, and normalise and modulate the sum for the next one.

    Args:
        x: ``[..., N]``, the stream.
        y: the same shape, the branch; both may have strided rows.
        gain: ``[N]``, or ``[B, 1, N]`` beside ``[B, rows, N]``; any floating type.
        scale: likewise.
        shift: likewise.
        eps: added to the variance.

    Returns:
        The new stream and its modulated norm, both of the shape and type of ``x``; arithmetic is fp32.

    Raises:
        ValueError: if the shapes do not fit.
    """
    _check(x, y, gain, scale, shift)
    if needs_gradient(x, y, gain, scale, shift):
        return gated_residual_layer_norm_reference(x, y, gain, scale, shift, eps)
    result: tuple[Tensor, Tensor] = _gated_residual_layer_norm(x, y, gain, scale, shift, eps)
    return result


def gated_residual_layer_norm_fp8(
    x: Tensor, y: Tensor, gain: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Do as :func:`gated_residual_layer_norm`, with the norm quantised to fp8 by row.

    Args:
        x: ``[..., N]``, the stream.
        y: the same shape, the branch.
        gain: ``[N]`` or ``[B, 1, N]``.
        scale: likewise.
        shift: likewise.
        eps: added to the variance.

    Returns:
        The new stream; ``[..., N]`` E4M3; ``[..., 1]`` fp32 row scales.

    Raises:
        ValueError: if the shapes do not fit.
    """
    _check(x, y, gain, scale, shift)
    if needs_gradient(x, y, gain, scale, shift):
        return gated_residual_layer_norm_fp8_reference(x, y, gain, scale, shift, eps)
    result: tuple[Tensor, Tensor, Tensor] = _gated_residual_layer_norm_fp8(x, y, gain, scale, shift, eps)
    return result
