"""Layer norm and modulation: ``y = (x - mean) / sqrt(variance + eps) * scale + shift``.

The norm of dual-stream transformers has no weights of its own; time (and the prompt, in SD3.5) scale and
shift it. ``scale`` is ``1 + modulation``, folded by whoever knows the time. It must read ``x`` once and write
``y`` once: 2 bytes an element each in bf16; the fp8 form writes 1.

Not measured alone yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._rows import (
    as_rows,
    as_vector,
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
from twinshot_kernels.quantize_rows import quantize_rows_reference


def centre_and_scale(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Normalise in fp32 and stay there: what every reference with a layer norm in it builds on."""
    wide = x.float()
    variance, mean = torch.var_mean(wide, dim=-1, correction=0, keepdim=True)
    return (wide - mean) * torch.rsqrt(variance + eps) * scale + shift


def layer_norm_reference(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Normalise the last axis of ``x`` in plain torch; see :func:`layer_norm`."""
    return centre_and_scale(x, scale, shift, eps).to(x.dtype).contiguous()


def layer_norm_fp8_reference(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Normalise and quantise in plain torch, without rounding in between; see :func:`layer_norm_fp8`."""
    return quantize_rows_reference(centre_and_scale(x, scale, shift, eps))


@jit
def _layer_norm_kernel(
    x: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    out: tl.tensor,
    row_scale: tl.tensor | None,
    stride: int,
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
    wide = load_row(x, row * stride, columns, width)
    factor = load_row(scale, image * scale_step, columns, width)
    offset = load_row(shift, image * shift_step, columns, width)
    h = shifted_norm(wide, factor, offset, columns, width, eps)
    store_row(h, out, row_scale, row, columns, width)


def _run(x: Tensor, scale: Tensor, shift: Tensor, eps: float, out: Tensor, row_scale: Tensor | None) -> None:
    rows, (scales, scale_step), (shifts, shift_step) = as_rows(x), as_vector(scale), as_vector(shift)
    count, width = rows.shape
    _layer_norm_kernel[(count,)](
        rows,
        scales,
        shifts,
        out,
        row_scale,
        rows.stride(0),
        scale_step,
        shift_step,
        rows_per_image(x),
        width,
        eps,
        **row_tile(width),
    )


def _launch(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    out = empty_rows(x)
    _run(x, scale, shift, eps, out, None)
    return out


def _launch_fp8(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    out, row_scale = empty_fp8(x)
    _run(x, scale, shift, eps, out, row_scale)
    return out, row_scale


_layer_norm = register("layer_norm", layer_norm_reference, _launch)
_layer_norm_fp8 = register("layer_norm_fp8", layer_norm_fp8_reference, _launch_fp8)


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Normalise the last axis of ``x`` by its mean and standard deviation, scale it and shift it.

    Args:
        x: ``[..., N]``, any floating type; rows may be strided.
        scale: ``[N]``, or ``[B, 1, N]`` beside ``x`` ``[B, rows, N]``; any floating type.
        shift: likewise.
        eps: added to the variance.

    Returns:
        A tensor of the shape and type of ``x``; arithmetic is fp32.

    Raises:
        ValueError: if the shapes do not fit.

    Source: Ba, Kiros and Hinton, arXiv 1607.06450.
    """
    check_vector("scale", scale, x)
    check_vector("shift", shift, x)
    if needs_gradient(x, scale, shift):
        return layer_norm_reference(x, scale, shift, eps)
    result: Tensor = _layer_norm(x, scale, shift, eps)
    return result


def layer_norm_fp8(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Normalise as :func:`layer_norm` does and quantise each row to fp8.

    Args:
        x: ``[..., N]``.
        scale: ``[N]`` or ``[B, 1, N]``.
        shift: likewise.
        eps: added to the variance.

    Returns:
        ``[..., N]`` E4M3 and ``[..., 1]`` fp32 row scales.

    Raises:
        ValueError: if the shapes do not fit.
    """
    check_vector("scale", scale, x)
    check_vector("shift", shift, x)
    if needs_gradient(x, scale, shift):
        return layer_norm_fp8_reference(x, scale, shift, eps)
    result: tuple[Tensor, Tensor] = _layer_norm_fp8(x, scale, shift, eps)
    return result
