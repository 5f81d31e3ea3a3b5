"""The end of a 3x3 convolution made of products, to bytes: nine products and a bias a value, then its level.

``y = round(clamp((bias + sum of p[h + i - 1, w + j - 1, tap (i, j)]) / 2 + 1/2, 0, 1) * 255)``, channels
last. The products are those of :func:`twinshot_kernels.group_norm_silu_taps`. It must read them once and
write one byte for each value.

Measured on an H100: 30.9 us at 1024x1024x32, 2.27 TB/s, .82 of a copy; plain torch 655 us.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from twinshot_kernels._dispatch import register
from twinshot_kernels._triton import jit, tl, triton
from twinshot_kernels.quantize_pixels import quantize_pixels_reference, to_level

# One value a thread: neighbours in a warp then read what lies side by side.
BLOCK = 128
NUM_WARPS = 4


def sum_taps(products: Tensor, channels: int) -> Tensor:
    """Add up the nine products of every output.

    Args:
        products: ``[B, H, W, T]``, T at least ``9 * channels``.
        channels: count of outputs.

    Returns:
        ``[B, channels, H, W]`` fp32, contiguous: the convolution with a padding of 1, without a bias.
    """
    height, width = products.shape[1:3]
    padded = functional.pad(products.float(), (0, 0, 1, 1, 1, 1))
    total = torch.zeros((), device=products.device)
    for tap in range(9):
        down, right = divmod(tap, 3)
        part = padded[:, down : down + height, right : right + width]
        total = total + part[..., tap * channels : (tap + 1) * channels]
    return total.permute(0, 3, 1, 2).contiguous()


def quantize_taps_reference(products: Tensor, channel_bias: Tensor) -> Tensor:
    """Add up and quantise in plain torch; see :func:`quantize_taps`."""
    channels = channel_bias.shape[0]
    return quantize_pixels_reference(sum_taps(products, channels), channels, channel_bias)


@jit
def _quantize_taps_kernel(
    products: tl.tensor,
    channel_bias: tl.tensor,
    out: tl.tensor,
    height: int,
    width: int,
    stride: int,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    # The products written last are cached: rows run backwards.
    image, row = tl.program_id(2).to(tl.int64), tl.num_programs(1) - 1 - tl.program_id(1)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel, column = place % CHANNELS, place // CHANNELS
    pixel = (image * height + row) * width
    value = tl.load(channel_bias + channel).to(tl.float32)
    for tap in tl.static_range(0, 9):
        down, right = tap // 3 - 1, tap % 3 - 1
        # Of vectors alone: the interpreter of Triton 3.9 makes a whole number of a scalar's comparison.
        line = tl.zeros_like(column) + (row + down)
        inside = (line >= 0) & (line < height) & (column + right >= 0) & (column + right < width)
        source = (pixel + down * width + right) * stride + (column * stride + channel + tap * CHANNELS)
        value += tl.load(products + source, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + pixel * CHANNELS + place, to_level(value), mask=column < width)


def _launch(products: Tensor, channel_bias: Tensor) -> Tensor:
    products = products.contiguous()
    batch, height, width, stride = products.shape
    channels = channel_bias.shape[0]
    out = torch.empty((batch, height, width, channels), dtype=torch.uint8, device=products.device)
    _quantize_taps_kernel[(triton.cdiv(width * channels, BLOCK), height, batch)](
        products,
        channel_bias.contiguous(),
        out,
        height,
        width,
        stride,
        CHANNELS=channels,
        BLOCK=BLOCK,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
    return out


_quantize_taps = register("quantize_taps", quantize_taps_reference, _launch)


def quantize_taps(products: Tensor, channel_bias: Tensor) -> Tensor:
    """Finish a 3x3 convolution and turn its pixels into 8-bit channels-last images.

    Args:
        products: ``[B, H, W, T]``, any floating type: of every pixel with every tap, ordered as
            :func:`~twinshot_kernels.group_norm_silu_taps` says; T is at least ``9 * channels``.
        channel_bias: ``[channels]``, added.

    Returns:
        ``[B, H, W, channels]`` uint8, contiguous, of pixels that are nominally in [-1, 1]; values outside are
        clamped.

    Raises:
        ValueError: if there are too few products.
    """
    if products.shape[-1] < 9 * channel_bias.shape[0]:
        raise ValueError(
            f"{products.shape[-1]} products a pixel; accepted: at least {9 * channel_bias.shape[0]} for "
            f"{channel_bias.shape[0]} channels."
        )
    # Bytes carry no gradient, so whoever calls this wants none.
    result: Tensor = _quantize_taps(products.detach(), channel_bias.detach())
    return result
