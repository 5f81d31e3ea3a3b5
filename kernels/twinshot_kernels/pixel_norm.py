"""Root-mean-square norm of pixels and the residual beside it: ``y = x / rms(x) * weight + bias + r``.

DC-AE normalises the channels of each pixel behind every block's last convolution and then adds the block's
input. There are up to a million rows of only 128 channels, so a program takes a tile of rows. It must read
``x`` and ``r`` and write ``y`` once; plain torch moves 14 such tensors. Measured on an H100: the 27 of a
DC-AE decode at 1024x1024 take 1.55 ms in bf16.

:func:`pixel_norm_taps` is the decoder's end: the norm, ReLU and the last convolution's products with every
tap, which :func:`twinshot_kernels.quantize_taps` adds up; see :mod:`twinshot_kernels.group_norm_silu_taps`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._triton import jit, tl, triton
from twinshot_kernels.rms_norm import normalise

ELEMENTS_PER_TILE = 4096
NUM_WARPS = 4
# The least that the matrix units multiply.
LEAST = 16


def _wide(x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None) -> Tensor:
    normed = normalise(x, weight.float(), eps) + bias.float()
    return normed if residual is None else normed + residual.float()


def pixel_norm_reference(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor:
    """Normalise and add in plain torch; see :func:`pixel_norm`."""
    return _wide(x, weight, bias, eps, residual).to(x.dtype).contiguous()


def _into_reference(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None
) -> None:
    out.copy_(pixel_norm_reference(x, weight, bias, eps, residual))


def pixel_norm_taps_reference(x: Tensor, weight: Tensor, bias: Tensor, taps: Tensor, eps: float) -> Tensor:
    """Normalise, activate and multiply in plain torch; see :func:`pixel_norm_taps`."""
    active = _wide(x, weight, bias, eps, None).relu().to(x.dtype)
    return (active.float() @ taps.float()).to(_product_type(x)).contiguous()


def _product_type(x: Tensor) -> torch.dtype:
    """Three bits more than bf16 has, so that nine rounded products are as good as their rounded sum."""
    return torch.float16 if x.dtype == torch.bfloat16 else x.dtype


@jit
def _normed(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    place: tl.tensor,
    inside: tl.tensor,
    channel: tl.tensor,
    channels: int,
    eps: float,
) -> tl.tensor:
    """Normalise a tile of rows in fp32."""
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(weight + channel, mask=channel < channels, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    return value * tl.rsqrt(tl.sum(value * value, axis=1) / channels + eps)[:, None] * factor + offset


@jit
def _pixel_norm_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor | None,
    out: tl.tensor,
    rows: int,
    channels: int,
    eps: float,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    place = row * channels + channel
    inside = (row < rows) & (channel < channels)
    y = _normed(x, weight, bias, place, inside, channel, channels, eps)
    if residual is not None:
        y += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)


@jit
def _pixel_norm_taps_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    taps: tl.tensor,
    out: tl.tensor,
    rows: int,
    channels: int,
    count: int,
    eps: float,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COUNT: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (channel < channels)
    y = _normed(x, weight, bias, row * channels + channel, inside, channel, channels, eps)
    column = tl.arange(0, COUNT)[None, :]
    line = tl.arange(0, BLOCK)[:, None]
    matrix = tl.load(taps + line * count + column, mask=(line < channels) & (column < count), other=0.0)
    active = tl.where(inside, tl.maximum(y, 0.0), 0.0).to(matrix.dtype)
    products = tl.dot(active, matrix, input_precision="ieee").to(out.dtype.element_ty)
    tl.store(out + row * count + column, products, mask=(row < rows) & (column < count))


def _tile(channels: int, least: int) -> dict[str, int]:
    block = max(least, triton.next_power_of_2(channels))
    return {"ROWS": max(least, ELEMENTS_PER_TILE // block), "BLOCK": block, "num_warps": NUM_WARPS}


def _launch(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None
) -> None:
    x, channels = x.contiguous(), x.shape[-1]
    rows, tile = x.numel() // channels, _tile(channels, 1)
    _pixel_norm_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
        x,
        weight.contiguous(),
        bias.contiguous(),
        None if residual is None else residual.contiguous(),
        out,
        rows,
        channels,
        eps,
        **tile,
    )


def _launch_taps(x: Tensor, weight: Tensor, bias: Tensor, taps: Tensor, eps: float) -> Tensor:
    x = x.contiguous()
    channels, count = taps.shape
    out = torch.empty((*x.shape[:-1], count), dtype=_product_type(x), device=x.device)
    rows, tile = x.numel() // channels, _tile(channels, LEAST)
    _pixel_norm_taps_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
        x,
        weight.contiguous(),
        bias.contiguous(),
        taps.contiguous(),
        out,
        rows,
        channels,
        count,
        eps,
        COUNT=max(LEAST, triton.next_power_of_2(count)),
        **tile,
    )
    return out


_pixel_norm = register("pixel_norm", _into_reference, _launch, mutates=["out"])
_pixel_norm_taps = register("pixel_norm_taps", pixel_norm_taps_reference, _launch_taps)


def _check(x: Tensor, **vectors: Tensor) -> None:
    for name, vector in vectors.items():
        if vector.shape != x.shape[-1:]:
            raise ValueError(f"{name} has shape {tuple(vector.shape)}; accepted: {tuple(x.shape[-1:])}.")


def pixel_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Normalise the channels of each pixel, and add to the result.

    Args:
        x: ``[..., C]``, any floating type; C is small enough for a few rows to fit into registers.
        weight: ``[C]``.
        bias: ``[C]``.
        eps: added to the mean square.
        residual: of the shape of ``x``, added at the end.
        out: where to put the result: of the shape and type of ``x``, contiguous.

    Returns:
        A contiguous tensor of the shape and type of ``x``; arithmetic is fp32.

    Raises:
        ValueError: if the shapes do not fit.
    """
    _check(x, weight=weight, bias=bias)
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual has shape {tuple(residual.shape)}; accepted: {tuple(x.shape)}.")
    if out is not None and (out.shape, out.dtype, out.is_contiguous()) != (x.shape, x.dtype, True):
        raise ValueError(
            f"out is {out.dtype} {tuple(out.shape)} with strides {out.stride()}; "
            f"accepted: contiguous {x.dtype} {tuple(x.shape)}."
        )
    # What is exported is written out of place: other runtimes have no views to write to.
    if torch.compiler.is_exporting() or needs_gradient(x, weight, bias, residual):
        result = pixel_norm_reference(x, weight, bias, eps, residual)
        return result if out is None else out.copy_(result)
    target = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    _pixel_norm(target, x, weight, bias, eps, residual)
    return target


def pixel_norm_taps(x: Tensor, weight: Tensor, bias: Tensor, taps: Tensor, eps: float) -> Tensor:
    """Normalise each pixel, apply ReLU and multiply with a matrix.

    Args:
        x: ``[..., C]``, any floating type.
        weight: ``[C]``, of the norm.
        bias: ``[C]``, of the norm.
        taps: ``[C, T]`` in the type of ``x``, ordered as :func:`~twinshot_kernels.group_norm_silu_taps` says.
        eps: added to the mean square.

    Returns:
        ``[..., T]``: fp16 for bf16, else the type of ``x``. Normalised values are rounded to the type of
        ``x``; sums are fp32.

    Raises:
        ValueError: if the shapes do not fit.
    """
    _check(x, weight=weight, bias=bias)
    if taps.dim() != 2 or taps.shape[0] != x.shape[-1]:
        raise ValueError(f"taps have shape {tuple(taps.shape)}; accepted: ({x.shape[-1]}, any).")
    if needs_gradient(x, weight, bias, taps):
        return pixel_norm_taps_reference(x, weight, bias, taps, eps)
    result: Tensor = _pixel_norm_taps(x, weight, bias, taps, eps)
    return result
