"""DC-AE's multi-scale tokens: a depthwise convolution, then a small matrix for each group of channels.

``y = [x, m]`` with ``m[g] = mix[g] (sum over taps of x[g] * tap[g])``, where a group is the query, key or
value of one head. As two grouped convolutions, each takes a pass over memory at a fraction of its speed; here
a tile of pixels of one group stays on the chip in between, and ``x`` is put beside the result while it is at
hand. It must read ``x`` and write ``y`` once.

Measured on an H100: 193 us at 128x128 pixels of 1536 channels in bf16, bound by the
cache's bandwidth, as every pixel is fetched for each of its 25 taps.

Source: Cai et al., arXiv 2205.14756 (multi-scale linear attention).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._triton import jit, tl, triton

PIXELS = 128
LEAST = 16
NUM_WARPS = 4
STAGES = 3


def depthwise_mix_reference(x: Tensor, taps: Tensor, mix: Tensor) -> Tensor:
    """Convolve and mix in plain torch, in fp32; see :func:`depthwise_mix`."""
    side = math.isqrt(len(taps))
    kernel = taps.float().t().reshape(-1, 1, side, side)
    wide = functional.conv2d(x.float().permute(0, 3, 1, 2), kernel, padding=side // 2, groups=len(kernel))
    grouped = torch.unflatten(wide.permute(0, 2, 3, 1), -1, (mix.shape[0], mix.shape[2]))
    mixed = torch.einsum("bhwgi,goi->bhwgo", grouped, mix.float()).flatten(-2)
    return torch.cat((x, mixed.to(x.dtype)), dim=-1)


@jit
def _depthwise_mix_kernel(
    x: tl.tensor,
    taps: tl.tensor,
    mix: tl.tensor,
    out: tl.tensor,
    height: int,
    width: int,
    channels: int,
    dim: int,
    SIDE: tl.constexpr,
    PIXELS: tl.constexpr,
    DIM: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    group, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    row, column = pixel // width, pixel % width
    lane = tl.arange(0, DIM)[None, :]
    channel = group * dim + lane
    origin = image * height * width
    source, target = tl.arange(0, DIM)[:, None], lane
    kept = (source < dim) & (target < dim)
    matrix = tl.load(mix + (group * dim + target) * dim + source, mask=kept, other=0.0).to(tl.float32)
    mixed = tl.zeros((PIXELS, DIM), tl.float32)
    begin = x + origin * channels
    for tap in tl.range(0, SIDE * SIDE, num_stages=STAGES):
        down, right = tap // SIDE - SIDE // 2, tap % SIDE - SIDE // 2
        inside = (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
        place = (pixel + down * width + right) * channels + channel
        value = tl.load(begin + place, mask=inside & (lane < dim), other=0.0)
        weight = tl.load(taps + tap * channels + group * dim + source, mask=source < dim, other=0.0)
        # A tap's weights go into the matrix, which has fewer elements than the tile.
        weighed = (weight.to(tl.float32) * matrix).to(value.dtype)
        mixed = tl.dot(value, weighed, mixed, input_precision=PRECISION)
    inside = (pixel < height * width) & (lane < dim)
    own = tl.load(x + (origin + pixel) * channels + channel, mask=inside, other=0.0)
    target = out + (origin + pixel) * 2 * channels + channel
    tl.store(target, own, mask=inside)
    tl.store(target + channels, mixed.to(out.dtype.element_ty), mask=inside)


def _launch(x: Tensor, taps: Tensor, mix: Tensor) -> Tensor:
    x = x.contiguous()
    batch, height, width, channels = x.shape
    groups, dim, _ = mix.shape
    out = torch.empty((batch, height, width, 2 * channels), dtype=x.dtype, device=x.device)
    _depthwise_mix_kernel[(triton.cdiv(height * width, PIXELS), groups, batch)](
        x,
        taps.contiguous(),
        mix.contiguous(),
        out,
        height,
        width,
        channels,
        dim,
        SIDE=math.isqrt(len(taps)),
        PIXELS=PIXELS,
        DIM=max(LEAST, triton.next_power_of_2(dim)),
        STAGES=STAGES,
        PRECISION="ieee",
        num_warps=NUM_WARPS,
    )
    return out


_depthwise_mix = register("depthwise_mix", depthwise_mix_reference, _launch)


def depthwise_mix(x: Tensor, taps: Tensor, mix: Tensor) -> Tensor:
    """Mix each channel with its neighbours, then the channels of each group; put the result behind ``x``.

    Args:
        x: ``[B, H, W, C]``, any floating type.
        taps: ``[K * K, C]``, K odd: row ``K i + j`` is the weight of row ``i`` and column ``j`` of a
            neighbourhood.
        mix: ``[G, D, D]`` with ``G * D = C``: from a group's channels (last axis) to its new ones.

    Returns:
        ``[B, H, W, 2C]`` in the type of ``x``, contiguous; arithmetic is fp32, borders are zeros.

    Raises:
        ValueError: if the shapes do not fit.
    """
    side = math.isqrt(len(taps))
    fits = side * side == len(taps) and side % 2 and taps.shape[1] == x.shape[-1] and x.dim() == 4
    if not fits or mix.shape[1] != mix.shape[2] or mix.shape[0] * mix.shape[1] != x.shape[-1]:
        raise ValueError(
            f"x, taps and mix have shapes {tuple(x.shape)}, {tuple(taps.shape)} and {tuple(mix.shape)}; "
            "accepted: [B, H, W, G D], [K K, G D] with an odd K, and [G, D, D]."
        )
    if needs_gradient(x, taps, mix):
        return depthwise_mix_reference(x, taps, mix)
    result: Tensor = _depthwise_mix(x, taps, mix)
    return result
