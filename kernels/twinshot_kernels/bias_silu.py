"""What stands between two convolutions: ``y = silu(x + bias)``, channels last.

torch adds a convolution's bias in one pass and activates in another; this is one pass, which must read
``x`` and write ``y`` once. Measured on an H100: the nine of a DC-AE decode at 1024x1024 take .93 ms in
bf16.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from twinshot_kernels._activation import silu
from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._triton import jit, tl, triton

ELEMENTS_PER_TILE = 4096
MAX_COLUMNS = 512
NUM_WARPS = 4


def bias_silu_reference(x: Tensor, bias: Tensor) -> Tensor:
    """Add and activate in plain torch, in fp32; see :func:`bias_silu`."""
    return functional.silu(x.float() + bias.float()).to(x.dtype).contiguous()


@jit
def _bias_silu_kernel(
    x: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: int,
    channels: int,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (channel < channels)
    value = tl.load(x + row * channels + channel, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    y = silu(value, False)
    tl.store(out + row * channels + channel, y.to(out.dtype.element_ty), mask=inside)


def _launch(x: Tensor, bias: Tensor) -> Tensor:
    x = x.contiguous()
    out, channels = torch.empty_like(x), bias.shape[0]
    rows, block = x.numel() // channels, min(triton.next_power_of_2(channels), MAX_COLUMNS)
    tile = {"ROWS": ELEMENTS_PER_TILE // block, "BLOCK": block, "num_warps": NUM_WARPS}
    grid = (triton.cdiv(rows, tile["ROWS"]), triton.cdiv(channels, block))
    _bias_silu_kernel[grid](x, bias.contiguous(), out, rows, channels, **tile)
    return out


_bias_silu = register("bias_silu", bias_silu_reference, _launch)


def bias_silu(x: Tensor, bias: Tensor) -> Tensor:
    """Add a bias to each channel and apply SiLU.

    Args:
        x: ``[..., C]``, any floating type.
        bias: ``[C]``.

    Returns:
        A contiguous tensor of the shape and type of ``x``; arithmetic is fp32.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if bias.shape != x.shape[-1:]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; accepted: {tuple(x.shape[-1:])}.")
    if needs_gradient(x, bias):
        return bias_silu_reference(x, bias)
    result: Tensor = _bias_silu(x, bias)
    return result
