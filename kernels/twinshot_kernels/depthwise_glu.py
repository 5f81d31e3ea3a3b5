"""The middle of SANA's feed-forward layer: ``s = silu(x)``, 3x3 depthwise, ``y = u * silu(g)``.

``u`` and ``g`` are the halves of the depthwise convolution's output. These are the widest tensors of a block
(5 times the stream), and plain torch passes over them five times. The kernel must read ``x`` once and write
half of it. A program walks down some rows of a strip of pairs of columns (see :mod:`._depthwise`), so that
the SiLU of a value is taken for the two pairs that need it and not for all nine taps.

Bound by its arithmetic, not by bytes: with three exact SiLUs a value, one for each column that needs it, it
took 205 us on an H100 at 128x128 pixels of 4096 channels in bf16, .98 TB/s, and 41 us at 32x32 of 11200. With
two, each of one special instruction, it takes 107 and 26 us, where a copy of as many bytes takes 68 and 13.

Source: Xie et al., arXiv 2410.10629 (Mix-FFN).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from twinshot_kernels._activation import approximates, silu
from twinshot_kernels._depthwise import add_row, count_if, load_taps
from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._triton import jit, tl, triton

PAIRS = 4
CHANNELS = 64
ROWS = 16
NUM_WARPS = 2
STAGES = 3


def depthwise_glu_reference(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    """Activate, convolve and gate in plain torch, in fp32; see :func:`depthwise_glu`."""
    wide = functional.silu(x.float()).permute(0, 3, 1, 2)
    kernel = taps.float().t().reshape(-1, 1, 3, 3)
    up, gate = functional.conv2d(wide, kernel, bias.float(), padding=1, groups=len(kernel)).chunk(2, dim=1)
    return (up * functional.silu(gate)).permute(0, 2, 3, 1).to(x.dtype).contiguous()


@jit
def _depthwise_glu_kernel(
    x: tl.tensor,
    taps: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    height: int,
    width: int,
    channels: int,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
    APPROXIMATE: tl.constexpr,
) -> None:
    stride = 2 * channels
    strips = tl.cdiv(width, 2 * PAIRS)
    first_row = (tl.program_id(1) // strips) * ROWS
    # Everything is as large as the tile, so that taps are loaded where they are used, and stay there.
    pair = tl.broadcast_to(tl.arange(0, PAIRS)[:, None], (PAIRS, CHANNELS))
    lane = tl.broadcast_to(tl.arange(0, CHANNELS)[None, :], (PAIRS, CHANNELS))
    column = 2 * ((tl.program_id(1) % strips) * PAIRS + pair)
    channel = tl.program_id(0) * CHANNELS + lane
    image = tl.program_id(2).to(tl.int64) * height * width
    kept = channel < channels
    gate_channel = channel + channels
    up_bias = tl.load(bias + channel, mask=kept, other=0.0).to(tl.float32)
    gate_bias = tl.load(bias + gate_channel, mask=kept, other=0.0).to(tl.float32)
    up_taps = load_taps(taps, channel, stride, kept, 9)
    gate_taps = load_taps(taps, gate_channel, stride, kept, 9)
    zero = tl.zeros((PAIRS, CHANNELS), tl.float32)
    up, up_right, gate, gate_right = (zero, zero), (zero, zero), (zero, zero), (zero, zero)
    for step in tl.range(0, ROWS + 2, num_stages=STAGES):
        row = first_row + step - 1
        inside = channel < count_if((row >= 0) & (row < height), channels)
        line = x + (image + row * width) * stride
        up, up_right = add_row(
            up + (zero,),
            up_right + (zero,),
            line,
            column,
            channel,
            width,
            stride,
            inside,
            up_taps,
            3,
            True,
            APPROXIMATE,
        )
        gate, gate_right = add_row(
            gate + (zero,),
            gate_right + (zero,),
            line,
            column,
            gate_channel,
            width,
            stride,
            inside,
            gate_taps,
            3,
            True,
            APPROXIMATE,
        )
        left = (up[0] + up_bias) * silu(gate[0] + gate_bias, APPROXIMATE)
        right = (up_right[0] + up_bias) * silu(gate_right[0] + gate_bias, APPROXIMATE)
        done = channel < count_if((step >= 2) & (row - 1 < height), channels)
        target = out + (image + (row - 1) * width) * channels + (column * channels + channel)
        tl.store(target, left.to(out.dtype.element_ty), mask=done & (column < width))
        tl.store(target + channels, right.to(out.dtype.element_ty), mask=done & (column + 1 < width))
        up, up_right, gate, gate_right = up[1:], up_right[1:], gate[1:], gate_right[1:]


def _launch(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    x = x.contiguous()
    batch, height, width, double = x.shape
    channels = double // 2
    out = torch.empty((batch, height, width, channels), dtype=x.dtype, device=x.device)
    strips = triton.cdiv(width, 2 * PAIRS) * triton.cdiv(height, ROWS)
    _depthwise_glu_kernel[(triton.cdiv(channels, CHANNELS), strips, batch)](
        x,
        taps.contiguous(),
        bias.contiguous(),
        out,
        height,
        width,
        channels,
        ROWS=ROWS,
        PAIRS=PAIRS,
        CHANNELS=CHANNELS,
        STAGES=STAGES,
        APPROXIMATE=approximates(x),
        num_warps=NUM_WARPS,
    )
    return out


_depthwise_glu = register("depthwise_glu", depthwise_glu_reference, _launch)


def depthwise_glu(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    """Activate pixels, mix each channel with its neighbours, and gate one half by the other.

    Args:
        x: ``[B, H, W, 2C]``, any floating type.
        taps: ``[9, 2C]``: row ``3 i + j`` is what row ``i`` and column ``j`` of a neighbourhood weigh.
        bias: ``[2C]``, of the convolution.

    Returns:
        ``[B, H, W, C]`` in the type of ``x``, contiguous; arithmetic is fp32, borders are zeros.

    Raises:
        ValueError: if the shapes do not fit.
    """
    width = x.shape[-1]
    if x.dim() != 4 or width % 2 or taps.shape != (9, width) or bias.shape != (width,):
        raise ValueError(
            f"x, taps and bias have shapes {tuple(x.shape)}, {tuple(taps.shape)} and {tuple(bias.shape)}; "
            "accepted: [B, H, W, 2C], [9, 2C] and [2C]."
        )
    if needs_gradient(x, taps, bias):
        return depthwise_glu_reference(x, taps, bias)
    result: Tensor = _depthwise_glu(x, taps, bias)
    return result
