"""Decoder output to bytes: ``y = round(clamp((x + channel_bias) / 2 + 1/2, 0, 1) * 255)``, channels last.

One pass instead of five, and the only tensor copied to the host is the quarter-sized result. Rounding
is to even, as NumPy and diffusers' image processor round. It must read the wanted channels once and write
one byte for each.

Measured on an H100: 9.4 us at 8x1024x1024 in bf16, 2.11 TB/s, .91 of a copy; plain torch 54.9 us.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twinshot_kernels._dispatch import register
from twinshot_kernels._triton import jit, tl, triton

BLOCK = 1024


def quantize_pixels_reference(
    pixels: Tensor, channels: int = 3, channel_bias: Tensor | None = None
) -> Tensor:
    """Quantise pixels in plain torch; see :func:`quantize_pixels`."""
    wide = pixels[:, :channels].float()
    if channel_bias is not None:
        wide = wide + channel_bias[:channels].float()[:, None, None]
    unit = (wide * 0.5 + 0.5).clamp(0, 1)
    # Bytes come last: TensorRT knows them as outputs alone.
    level = (unit * 255).round().permute(0, 2, 3, 1)
    return level.to(torch.uint8, memory_format=torch.contiguous_format)


@jit
def to_level(value: tl.tensor) -> tl.tensor:
    """Turn pixels in [-1, 1] into bytes; wants ``enable_fp_fusion=False``.

    Fusing the product into the rounding sum would round it once too few.
    """
    level = tl.minimum(tl.maximum(value * 0.5 + 0.5, 0.0), 1.0) * 255.0
    # Beside 2^23 a float has no fraction bits left: the sum rounds to even.
    level = (level + 8388608.0) - 8388608.0
    return level.to(tl.uint8)


@jit
def _quantize_pixels_kernel(
    pixels: tl.tensor,
    channel_bias: tl.tensor | None,
    out: tl.tensor,
    height: int,
    width: int,
    channels: int,
    image_stride: int,
    channel_stride: int,
    row_stride: int,
    column_stride: int,
    BLOCK: tl.constexpr,
) -> None:
    image = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < height * width * channels
    channel, pixel = place % channels, place // channels
    column, row = pixel % width, pixel // width
    source = image * image_stride + channel * channel_stride + row * row_stride + column * column_stride
    value = tl.load(pixels + source, mask=inside, other=0.0).to(tl.float32)
    if channel_bias is not None:
        value += tl.load(channel_bias + channel).to(tl.float32)
    tl.store(out + image * height * width * channels + place, to_level(value), mask=inside)


def _launch(pixels: Tensor, channels: int, channel_bias: Tensor | None) -> Tensor:
    batch, kept, height, width = pixels[:, :channels].shape
    out = torch.empty((batch, height, width, kept), dtype=torch.uint8, device=pixels.device)
    _quantize_pixels_kernel[(triton.cdiv(out[0].numel(), BLOCK), batch)](
        pixels,
        None if channel_bias is None else channel_bias.contiguous(),
        out,
        height,
        width,
        kept,
        *pixels.stride(),
        BLOCK=BLOCK,
        enable_fp_fusion=False,
    )
    return out


_quantize_pixels = register("quantize_pixels", quantize_pixels_reference, _launch)


def quantize_pixels(pixels: Tensor, channels: int = 3, channel_bias: Tensor | None = None) -> Tensor:
    """Turn decoded pixels into 8-bit channels-last images.

    Args:
        pixels: ``[B, C, H, W]``, nominally in [-1, 1]; values outside are clamped. Any floating type,
            any strides.
        channels: how many channels, from the first, are wanted; the last convolution may have been padded.
        channel_bias: at least ``channels`` values, added first.

    Returns:
        ``[B, H, W, min(C, channels)]`` uint8, contiguous.
    """
    # Bytes carry no gradient, so whoever calls this wants none.
    result: Tensor = _quantize_pixels(pixels.detach(), channels, channel_bias)
    return result
