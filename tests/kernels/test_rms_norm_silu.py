"""RMS norm over channels and SiLU, alone and behind a residual sum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import twinshot_kernels as ops

EPS = 1e-6
Agree = Callable[[Tensor, Tensor, Tensor], None]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
SHAPES = pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 96, 3, 5), (1, 130, 7, 2), (3, 16, 9, 9)])
FORMS = pytest.mark.parametrize(("biased", "silu"), [(True, True), (False, False), (False, True)])


def normed(v: Tensor, weight: Tensor, silu: bool) -> Tensor:
    """By the formula, in the type of ``v``."""
    h = v / (v.pow(2).mean(1, keepdim=True) + EPS).sqrt() * weight.to(v.dtype)[:, None, None]
    return h / (1 + (-h).exp()) if silu else h


@DTYPES
@SHAPES
@FORMS
def test_norm_of_a_pixel(
    device: str, agree: Agree, shape: tuple[int, ...], dtype: torch.dtype, biased: bool, silu: bool
) -> None:
    x, y = (torch.randn(shape).to(device, dtype) for _ in range(2))
    weight, bias = torch.randn(shape[1]).to(device), torch.randn(shape[1]).to(device)
    lines = bias[:, None, None] if biased else torch.zeros(())
    known = bias if biased else None
    result = ops.rms_norm_silu(x, weight, EPS, channel_bias=known, silu=silu)
    assert result.is_contiguous(memory_format=torch.channels_last)
    agree(
        result,
        normed(x.double() + lines.double().to(device), weight, silu),
        normed(x + lines.to(device, dtype), weight, silu),
    )
    total, h = ops.residual_rms_norm_silu(x, y, weight, EPS, channel_bias=known, silu=silu)
    exact = x.double() + y.double() + lines.double().to(device)
    agree(total, exact, x + y + lines.to(device, dtype))
    assert torch.equal(ops.residual_sum(x, y, channel_bias=known), total)
    agree(h, normed(total.double(), weight, silu), normed(total, weight, silu))


def test_a_black_pixel_stays_black(device: str) -> None:
    x = torch.zeros(1, 8, 2, 2).to(device)
    assert torch.equal(ops.rms_norm_silu(x, torch.ones(8).to(device), 1e-26), x)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x = torch.randn(1, 4, 2, 2)
    with pytest.raises(ValueError, match=r"weight has shape \(3,\); accepted: \(4,\)"):
        ops.rms_norm_silu(x, torch.ones(3), EPS)
    with pytest.raises(ValueError, match=r"y has shape \(1, 4, 2, 1\); accepted: \(1, 4, 2, 2\)"):
        ops.residual_rms_norm_silu(x, x[..., :1], torch.ones(4), EPS)
    with pytest.raises(ValueError, match=r"y has shape \(1, 4, 2, 1\); accepted: \(1, 4, 2, 2\)"):
        ops.residual_sum(x, x[..., :1])
