"""Norm and rotation of queries and keys in the packed projection."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import twinshot_kernels as ops

EPS = 1e-6
BOTH_PAIRINGS = pytest.mark.parametrize("interleaved", [True, False])


def turned(x: Tensor, scale: Tensor | None, angles: Tensor, interleaved: bool) -> Tensor:
    """Norm and complex product in the type of ``x`` ``[B, N, H, D]``."""
    if scale is not None:
        x = x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * scale.to(x.dtype)
    first, second = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype)[:, None], angles.sin().to(x.dtype)[:, None]
    parts = first * cos - second * sin, first * sin + second * cos
    return torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)


@BOTH_PAIRINGS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(3, 3, 128), (17, 2, 24), (1, 1, 2), (4, 2, 64)])
def test_qk_norm_rotary(
    device: str,
    agree: Callable[[Tensor, Tensor, Tensor], None],
    heads: int,
    kv_heads: int,
    width: int,
    normed: bool,
    dtype: torch.dtype,
    interleaved: bool,
) -> None:
    count, angles = heads + 2 * kv_heads, torch.randn(5, width // 2)
    qkv = torch.randn(2, 5, count * width).to(device, dtype)
    angles = angles.to(device)
    scales = [torch.randn(width).to(device) if normed else None for _ in range(2)]
    before = qkv.clone().unflatten(-1, (count, width))
    results = ops.qk_norm_rotary(
        qkv, *scales, angles.cos(), angles.sin(), EPS, heads=heads, kv_heads=kv_heads, interleaved=interleaved
    )
    q, k, v = before.split([heads, kv_heads, kv_heads], dim=2)
    for part, scale, result in zip((q, k), scales, results[:2], strict=True):
        exact = turned(part.double(), scale, angles.double(), interleaved)
        agree(result, exact, turned(part, scale, angles, interleaved))
    assert torch.equal(results[2], v)


@BOTH_PAIRINGS
def test_results_are_views_of_the_projection(device: str, interleaved: bool) -> None:
    qkv = torch.randn(1, 3, 4 * 8).to(device)
    table = torch.ones(3, 4, device=device), torch.zeros(3, 4, device=device)
    parts = ops.qk_norm_rotary(qkv, None, None, *table, EPS, heads=2, kv_heads=1, interleaved=interleaved)
    assert [tuple(part.shape) for part in parts] == [(1, 3, 2, 8), (1, 3, 1, 8), (1, 3, 1, 8)]
    storage = qkv.untyped_storage().data_ptr()
    assert all(part.untyped_storage().data_ptr() == storage for part in parts)


def test_a_strided_projection_is_copied_first(device: str) -> None:
    wide = torch.randn(1, 3, 40).to(device)
    table = torch.randn(3, 4).to(device), torch.randn(3, 4).to(device)
    kept, options = wide.clone(), {"heads": 2, "kv_heads": 1, "interleaved": True}
    strided = ops.qk_norm_rotary(wide[..., 8:], None, None, *table, EPS, **options)
    whole = ops.qk_norm_rotary(wide[..., 8:].contiguous(), None, None, *table, EPS, **options)
    assert all(torch.equal(*pair) for pair in zip(strided, whole, strict=True))
    assert torch.equal(wide, kept)


def test_shapes_that_do_not_fit_are_refused() -> None:
    qkv, scale, table = torch.randn(1, 3, 32), torch.ones(8), torch.ones(3, 4)
    good = {"heads": 2, "kv_heads": 1, "interleaved": True}
    with pytest.raises(ValueError, match="width 32 is not 5 heads"):
        ops.qk_norm_rotary(qkv, scale, scale, table, table, EPS, **(good | {"heads": 3}))
    with pytest.raises(ValueError, match=r"table has shape \(2, 4\); accepted here: \(3, 4\)"):
        ops.qk_norm_rotary(qkv, scale, scale, table[:2], table[:2], EPS, **good)
    with pytest.raises(ValueError, match="Only one of q_scale and k_scale"):
        ops.qk_norm_rotary(qkv, scale, None, table, table, EPS, **good)
