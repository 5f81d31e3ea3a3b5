"""DC-AE's multi-scale tokens: a depthwise convolution, then a small matrix for each group of channels.

``y = [x, m]`` with ``m[g] = mix[g] (sum over taps of x[g] * tap[g])``, where a group is the query, key or
value of one head. As two grouped convolutions, each takes a pass over memory at a fraction of its speed; here
a tile of pixels of one group stays on the chip in between, and ``x`` is put beside the result while it is at
hand. It must read ``x`` and write ``y`` once. A program walks down some rows of a strip of pairs of columns
(see :mod:`._depthwise`) and mixes each row that is done on the matrix units.

With every pixel fetched for each of its 25 taps, which then were products of matrices, it took 193 us on an
H100 at 128x128 pixels of 1536 channels in bf16, bound by the cache's bandwidth. Now it fetches five for each
pixel, and takes 110 us, where a copy of as many bytes takes 52.

Source: Cai et al., arXiv 2205.14756 (multi-scale linear attention).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from twinshot_kernels._depthwise import add_row, count_if, load_taps
from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._triton import jit, tl, triton

PAIRS = 8
ROWS = 16
LEAST = 16
NUM_WARPS = 2
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
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
    DIM: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    reach: tl.constexpr = SIDE // 2
    group, image = tl.program_id(1), tl.program_id(2).to(tl.int64) * height * width
    strips = tl.cdiv(width, 2 * PAIRS)
    first_row = (tl.program_id(0) // strips) * ROWS
    first_column = (tl.program_id(0) % strips) * 2 * PAIRS
    # Everything is as large as the tile, so that taps are loaded where they are used, and stay there.
    pair = tl.broadcast_to(tl.arange(0, PAIRS)[:, None], (PAIRS, DIM))
    lane = tl.broadcast_to(tl.arange(0, DIM)[None, :], (PAIRS, DIM))
    loaded = load_taps(taps, group * dim + lane, channels, lane < dim, SIDE * SIDE)
    source, target = tl.arange(0, DIM)[:, None], tl.arange(0, DIM)[None, :]
    both = (source < dim) & (target < dim)
    matrix = tl.load(mix + (group * dim + target) * dim + source, mask=both, other=0.0)
    zero = tl.zeros((PAIRS, DIM), tl.float32)
    even, odd = (zero,) * (SIDE - 1), (zero,) * (SIDE - 1)
    column, channel = first_column + tl.arange(0, 2 * PAIRS)[:, None], group * dim + target
    for step in tl.range(0, ROWS + SIDE - 1, num_stages=STAGES):
        row = first_row + step - reach
        even, odd = add_row(
            even + (zero,),
            odd + (zero,),
            x + (image + row * width) * channels,
            first_column + 2 * pair,
            group * dim + lane,
            width,
            channels,
            lane < count_if((row >= 0) & (row < height), dim),
            loaded,
            SIDE,
            False,
            False,
        )
        # Side by side, both columns of all pairs are rows enough for the matrix units.
        tile = tl.reshape(tl.permute(tl.join(even[0], odd[0]), (0, 2, 1)), (2 * PAIRS, DIM))
        mixed = tl.dot(tile.to(matrix.dtype), matrix, input_precision=PRECISION)
        below = (step >= SIDE - 1) & (row - reach < height)
        done = (column < width) & (target < count_if(below, dim))
        begin = image + (row - reach) * width
        own = tl.load(x + begin * channels + (column * channels + channel), mask=done, other=0.0)
        place = out + begin * 2 * channels + (column * 2 * channels + channel)
        tl.store(place, own, mask=done)
        tl.store(place + channels, mixed.to(out.dtype.element_ty), mask=done)
        even, odd = even[1:], odd[1:]


def _launch(x: Tensor, taps: Tensor, mix: Tensor) -> Tensor:
    x = x.contiguous()
    batch, height, width, channels = x.shape
    groups, dim, _ = mix.shape
    out = torch.empty((batch, height, width, 2 * channels), dtype=x.dtype, device=x.device)
    _depthwise_mix_kernel[(triton.cdiv(width, 2 * PAIRS) * triton.cdiv(height, ROWS), groups, batch)](
        x,
        taps.contiguous(),
        mix.contiguous(),
        out,
        height,
        width,
        channels,
        dim,
        SIDE=math.isqrt(len(taps)),
        ROWS=ROWS,
        PAIRS=PAIRS,
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
