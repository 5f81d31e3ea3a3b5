"""Two packed projections normalised into one buffer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import twinshot_kernels as ops

EPS = 1e-6
Agree = Callable[[Tensor, Tensor, Tensor], None]


def normed(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * scale.to(x.dtype)


def joined(first: Tensor, second: Tensor | None, scales: list[Tensor | None], heads: int) -> list[Tensor]:
    """Queries, keys and values ``[B, N + M, H, D]`` by the formula, in the type of ``first``."""
    streams = [(first, scales[:2])] if second is None else [(first, scales[:2]), (second, scales[2:])]
    parts: list[list[Tensor]] = [[], [], []]
    for packed, pair in streams:
        split = packed.unflatten(-1, (3, heads, -1)).unbind(2)
        for place, (tensor, scale) in enumerate(zip(split, [*pair, None], strict=True)):
            parts[place].append(normed(tensor, scale))
    return [torch.cat(part, dim=1) for part in parts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_norm", [True, False])
@pytest.mark.parametrize("second_tokens", [None, 1, 4])
@pytest.mark.parametrize(("heads", "width"), [(3, 64), (13, 24), (1, 2)])
def test_joint_qk_norm(
    device: str,
    agree: Agree,
    dtype: torch.dtype,
    heads: int,
    width: int,
    second_tokens: int | None,
    with_norm: bool,
) -> None:
    first = torch.randn(2, 5, 3 * heads * width).to(device, dtype)
    second = None
    if second_tokens is not None:
        second = torch.randn(2, second_tokens, 3 * heads * width).to(device, dtype)
    scales = [torch.randn(width).to(device) if with_norm else None for _ in range(4)]
    before = first.clone()
    results = ops.joint_qk_norm(first, second, *scales, EPS, heads=heads)
    assert torch.equal(first, before)
    exact = joined(first.double(), None if second is None else second.double(), scales, heads)
    plain = joined(first, second, scales, heads)
    for result, right, usual in zip(results[:2], exact[:2], plain[:2], strict=True):
        agree(result, right, usual)
    assert torch.equal(results[2], plain[2])
    assert results[0].data_ptr() + results[0][0, 0].numel() * results[0].element_size() == (
        results[1].data_ptr()
    )


def test_what_does_not_fit_is_refused() -> None:
    first, scale = torch.randn(2, 5, 48), torch.ones(8)
    none = [None] * 4
    with pytest.raises(ValueError, match="width 48 is not 3 x 5 heads"):
        ops.joint_qk_norm(first, None, *none, EPS, heads=5)
    with pytest.raises(ValueError, match=r"shape \(1, 5, 48\); accepted beside \(2, 5, 48\): \[2, M, 48\]"):
        ops.joint_qk_norm(first, first[:1], *none, EPS, heads=2)
    with pytest.raises(ValueError, match="Some scales are given"):
        ops.joint_qk_norm(first, first, scale, scale, scale, None, EPS, heads=2)
    with pytest.raises(ValueError, match="Some scales are given"):
        ops.joint_qk_norm(first, None, scale, None, None, None, EPS, heads=2)
