"""Decoder output to bytes: ``y = round(clamp((x + channel_bias) / 2 + 1/2, 0, 1) * 255)``, channels last.

One pass instead of five, and the only tensor copied to the host is the quarter-sized result. Rounding
is to even, as NumPy and diffusers' image processor round. It must read the wanted channels once and write
one byte for each.

Measured: see benchmarks/results (kernels).
"""

from __future__ import annotations

import torch
from torch import Tensor

from twinshot_kernels._dispatch import register


def quantize_pixels_reference(
    pixels: Tensor, channels: int = 3, channel_bias: Tensor | None = None
) -> Tensor:
    """Quantise pixels in plain torch; see :func:`quantize_pixels`."""
    wide = pixels[:, :channels].float()
    if channel_bias is not None:
        wide = wide + channel_bias[:channels].float()[:, None, None]
    unit = (wide * 0.5 + 0.5).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


_quantize_pixels = register("quantize_pixels", quantize_pixels_reference, quantize_pixels_reference)


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
