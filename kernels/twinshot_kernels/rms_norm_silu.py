"""RMS norm over the channels of each pixel and SiLU, channels last, alone and behind a residual sum.

``h = silu(v / sqrt(mean(v^2) + eps) * weight)`` with ``v = x + channel_bias``, or with
``v = x + y + channel_bias``, which then is the new ``x`` and is returned too. The norm of video autoencoders
(Wan's and Qwen-Image's). A pixel's norm depends on that pixel alone, so one pass does all. ``channel_bias``
is the bias of the convolution before, which costs a pass of its own where torch adds it. The first form must
read ``x`` and write ``h``, the second read two tensors and write two; plain layers move 13 and more. Where no
norm follows, :func:`residual_sum` is the second form without ``h``.

Not measured alone yet.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from twinshot_kernels._activation import silu as _silu
from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._rows import check_same_shape
from twinshot_kernels._triton import jit, tl, triton

# Of one program: enough bytes on their way for a pass at full speed, few enough to stay in registers.
ELEMENTS = 4096
NUM_WARPS = 4


def _normed(v: Tensor, weight: Tensor, eps: float, *, silu: bool) -> Tensor:
    wide = v.float()
    scale = torch.rsqrt(wide.square().mean(1, keepdim=True) + eps)
    normed = wide * scale * weight.float()[:, None, None]
    out = functional.silu(normed) if silu else normed
    return out.to(v.dtype).contiguous(memory_format=torch.channels_last)


def rms_norm_silu_reference(
    x: Tensor, weight: Tensor, eps: float, channel_bias: Tensor | None = None, silu: bool = True
) -> Tensor:
    """Normalise and activate in plain torch; see :func:`rms_norm_silu`."""
    v = x.float() if channel_bias is None else x.float() + channel_bias.float()[:, None, None]
    return _normed(v, weight, eps, silu=silu).to(x.dtype)


def residual_rms_norm_silu_reference(
    x: Tensor, y: Tensor, weight: Tensor, eps: float, channel_bias: Tensor | None = None, silu: bool = True
) -> tuple[Tensor, Tensor]:
    """Add, normalise and activate in plain torch; see :func:`residual_rms_norm_silu`."""
    total = residual_sum_reference(x, y, channel_bias)
    return total, _normed(total, weight, eps, silu=silu)


def residual_sum_reference(x: Tensor, y: Tensor, channel_bias: Tensor | None = None) -> Tensor:
    """Add in plain torch; see :func:`residual_sum`."""
    total = x.float() + y.float()
    total = total if channel_bias is None else total + channel_bias.float()[:, None, None]
    return total.to(x.dtype).contiguous(memory_format=torch.channels_last)


@jit
def _rms_norm_silu_kernel(
    x: tl.tensor,
    y: tl.tensor | None,
    weight: tl.tensor | None,
    channel_bias: tl.tensor | None,
    total: tl.tensor | None,
    out: tl.tensor | None,
    pixels: int,
    channels: int,
    eps: float,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    channel = tl.arange(0, BLOCK)[None, :]
    known = channel < channels
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    inside = (pixel < pixels) & known
    place = pixel * channels + channel
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if y is not None:
        value += tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
    if channel_bias is not None:
        value += tl.load(channel_bias + channel, mask=known, other=0.0).to(tl.float32)
    if total is not None:
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + place, rounded, mask=inside)
        value = rounded.to(tl.float32)
    if out is not None:
        inverse = tl.rsqrt(tl.sum(value * value, axis=1, keep_dims=True) / channels + eps)
        h = value * inverse * tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
        if SILU:
            h = _silu(h, False)
        tl.store(out + place, h.to(out.dtype.element_ty), mask=inside)


def _run(
    x: Tensor,
    y: Tensor | None,
    weight: Tensor | None,
    eps: float,
    channel_bias: Tensor | None,
    total: Tensor | None,
    out: Tensor | None,
    silu: bool,
) -> None:
    batch, channels, height, width = x.shape
    tile = _tile(channels)
    pixels = batch * height * width
    _rms_norm_silu_kernel[(triton.cdiv(pixels, tile["ROWS"]),)](
        x,
        y,
        None if weight is None else weight.contiguous(),
        None if channel_bias is None else channel_bias.contiguous(),
        total,
        out,
        pixels,
        channels,
        eps,
        SILU=silu,
        **tile,
    )


def _tile(channels: int) -> dict[str, Any]:
    block = triton.next_power_of_2(channels)
    return {"ROWS": max(1, ELEMENTS // block), "BLOCK": block, "num_warps": NUM_WARPS}


def _launch(x: Tensor, weight: Tensor, eps: float, channel_bias: Tensor | None, silu: bool) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(x)
    _run(x, None, weight, eps, channel_bias, None, out, silu)
    return out


def _launch_residual(
    x: Tensor, y: Tensor, weight: Tensor, eps: float, channel_bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    x, y = (part.contiguous(memory_format=torch.channels_last) for part in (x, y))
    total, out = torch.empty_like(x), torch.empty_like(x)
    _run(x, y, weight, eps, channel_bias, total, out, silu)
    return total, out


def _launch_sum(x: Tensor, y: Tensor, channel_bias: Tensor | None) -> Tensor:
    x, y = (part.contiguous(memory_format=torch.channels_last) for part in (x, y))
    total = torch.empty_like(x)
    _run(x, y, None, 0.0, channel_bias, total, None, False)
    return total


_residual_sum = register("residual_sum", residual_sum_reference, _launch_sum)
_rms_norm_silu = register("rms_norm_silu", rms_norm_silu_reference, _launch)
_residual_rms_norm_silu = register(
    "residual_rms_norm_silu", residual_rms_norm_silu_reference, _launch_residual
)


def _check(x: Tensor, weight: Tensor) -> None:
    if weight.shape != x.shape[1:2]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; accepted: {tuple(x.shape[1:2])}.")


def rms_norm_silu(
    x: Tensor, weight: Tensor, eps: float, *, channel_bias: Tensor | None = None, silu: bool = True
) -> Tensor:
    """Normalise the channels of each pixel by their root mean square and apply SiLU.

    Args:
        x: ``[B, C, H, W]``, channels last (other layouts are converted), any floating type.
        weight: ``[C]``.
        eps: added to the mean square.
        channel_bias: ``[C]``, added to ``x`` first.
        silu: whether the activation is applied.

    Returns:
        A tensor of the shape and type of ``x``, channels last; arithmetic is fp32.

    Raises:
        ValueError: if ``weight`` has another shape.
    """
    _check(x, weight)
    if needs_gradient(x, weight, channel_bias):
        return rms_norm_silu_reference(x, weight, eps, channel_bias, silu)
    result: Tensor = _rms_norm_silu(x, weight, eps, channel_bias, silu)
    return result


def residual_rms_norm_silu(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    eps: float,
    *,
    channel_bias: Tensor | None = None,
    silu: bool = True,
) -> tuple[Tensor, Tensor]:
    """Add a branch and a bias, and do to the sum as :func:`rms_norm_silu`.

    Args:
        x: ``[B, C, H, W]``, channels last (other layouts are converted), any floating type.
        y: the same shape and type.
        weight: ``[C]``.
        eps: added to the mean square.
        channel_bias: ``[C]``, added to the sum.
        silu: whether the activation is applied.

    Returns:
        The sum and what the norm makes of it after it was rounded, both of the shape and type of ``x`` and
        channels last; arithmetic is fp32.

    Raises:
        ValueError: if ``weight`` or ``y`` has another shape.
    """
    _check(x, weight)
    check_same_shape("y", y, x)
    if needs_gradient(x, y, weight, channel_bias):
        return residual_rms_norm_silu_reference(x, y, weight, eps, channel_bias, silu)
    result: tuple[Tensor, Tensor] = _residual_rms_norm_silu(x, y, weight, eps, channel_bias, silu)
    return result


def residual_sum(x: Tensor, y: Tensor, *, channel_bias: Tensor | None = None) -> Tensor:
    """Add a branch and a bias.

    Args:
        x: ``[B, C, H, W]``, channels last (other layouts are converted), any floating type.
        y: the same shape and type.
        channel_bias: ``[C]``, added to the sum.

    Returns:
        The sum, of the shape and type of ``x`` and channels last; arithmetic is fp32.

    Raises:
        ValueError: if ``y`` has another shape.
    """
    check_same_shape("y", y, x)
    if needs_gradient(x, y, channel_bias):
        return residual_sum_reference(x, y, channel_bias)
    result: Tensor = _residual_sum(x, y, channel_bias)
    return result
