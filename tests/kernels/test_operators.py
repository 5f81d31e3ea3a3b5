"""What torch demands of registered operators, and how calls choose between kernel and reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import twinshot_kernels as ops

EPS = 1e-6
PLACES = pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def samples(place: str) -> dict[str, list[tuple[Any, ...]]]:
    """Arguments for every operator, with and without what is optional."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64).to(place)
    y = torch.randn(2, 3, 80).to(place)[..., 8:72].to(x.dtype)
    half, scale, per_image = x.bfloat16(), torch.randn(64).to(place), torch.randn(2, 1, 64).to(place)
    image, channel = torch.randn(2, 8, 5, 3).to(place), torch.randn(8).to(place)
    table = torch.randn(3, 4).to(place)
    wide = torch.randn(1, 9, 1, 320).to(place, torch.bfloat16)
    packed = torch.randn(2, 3, 6 * 8).to(place)
    heads, tokens = packed.view(2, 3, 6, 8), torch.randn(2, 4, 9, 8).to(place)
    doubled = torch.randn(2, 8, 18, 2).to(place)
    return {
        "rms_norm": [(y, scale, EPS), (half, per_image, EPS)],
        "rms_norm_fp8": [(y, scale, EPS)],
        "residual_norm": [(x, y, scale, EPS), (half, half.flip(0), per_image, EPS)],
        "residual_norm_fp8": [(x, y, scale, EPS)],
        "gated_residual_norm": [(x, y, scale, per_image, EPS)],
        "gated_residual_norm_fp8": [(half, half.flip(0), scale, scale, EPS)],
        "layer_norm": [(y, scale, scale, EPS), (half, per_image, scale, EPS)],
        "layer_norm_fp8": [(y, scale, per_image, EPS)],
        "gated_residual_layer_norm": [(x, y, scale, per_image, scale, EPS)],
        "gated_residual_layer_norm_fp8": [(half, half.flip(0), scale, scale, per_image, EPS)],
        "geglu": [(x, y), (half, half.flip(0))],
        "geglu_fp8": [(y, x)],
        "gelu_fp8": [(y,), (half,)],
        "joint_norm_rotary": [(packed, scale[:32].view(2, 2, 8), table, table, 2, EPS, 2)],
        "rms_norm_silu": [
            (image, channel, EPS, None, True),
            (image.bfloat16(), channel, EPS, channel, False),
        ],
        "residual_sum": [(image, image.flip(0), None), (image.bfloat16(), image.bfloat16(), channel)],
        "residual_rms_norm_silu": [(image, image.flip(0), channel, EPS, channel, True)],
        "swiglu": [(x, y), (half, half.flip(0))],
        "swiglu_fp8": [(y, x)],
        "quantize_rows": [(y,), (half,)],
        "qk_norm_rotary": [
            (packed, scale[:8], scale[8:16], table, table, EPS, 4, 1, True),
            (packed, None, None, table, table, EPS, 2, 2, False),
        ],
        "group_statistics": [(image, 4, EPS, None), (image.bfloat16(), 4, EPS, channel)],
        "residual_statistics": [(image, image.flip(0), 4, EPS, channel)],
        "group_norm_silu": [
            (image, channel, channel, 4, EPS, None, None, True),
            (image, channel, channel, 4, EPS, channel, torch.rand(2, 4, 2).to(place), False),
        ],
        "group_norm_silu_taps": [
            (image, channel, channel, image[0, :, 0], 4, EPS, None, None),
            (image.bfloat16(), channel, channel, image[0, :, 0].bfloat16(), 4, EPS, channel, None),
        ],
        "quantize_taps": [(image.permute(0, 2, 3, 1).repeat(1, 1, 1, 4), channel[:3])],
        "quantize_pixels": [(image, 3, None), (image, 3, channel)],
        "gated_residual": [(x, y, scale), (half, half.flip(0), per_image)],
        "embed_rows": [(y[0].contiguous(), torch.tensor([[2, 0], [1, 1]]).to(place), 3.0)],
        "bias_silu": [(y, scale), (half, scale)],
        "pixel_norm": [
            (torch.empty_like(y), y, scale, scale, EPS, None),
            (torch.empty_like(half), half, scale, scale, EPS, half.flip(0)),
        ],
        "pixel_norm_taps": [(y, scale, scale, x[0].t(), EPS)],
        "linear_attention": [(heads, heads.flip(0), heads)],
        "depthwise_glu": [(tokens, tokens[0, 0], scale[:8])],
        "depthwise_mix": [(tokens, tokens[0, 0], scale.view(2, 4, 8)[..., :4])],
        "upsample_shortcut": [
            (tokens, scale[:8], tokens[..., :4], False),
            (doubled, scale[:2], tokens[..., :4], True),
        ],
        "capped_attention": [(heads, heads, heads.flip(0), heads[0, :2], heads[0, :2], 0.5, 2.0, 3)],
        "wide_attention": [(wide, wide.flip(1), wide)],
    }


@PLACES
@pytest.mark.parametrize("name", samples("cpu"))
def test_opcheck(place: str, name: str) -> None:
    for arguments in samples(place)[name]:
        opcheck(getattr(torch.ops.twinshot, name).default, arguments)


def _block(x: Tensor, y: Tensor, vector: Tensor, qkv: Tensor, table: Tensor, image: Tensor) -> list[Tensor]:
    channel = vector[: image.shape[1]]
    stream, h = ops.gated_residual_norm(x, y, vector, vector, EPS)
    options = {"heads": 2, "kv_heads": 1, "interleaved": True}
    query, key, value = ops.qk_norm_rotary(qkv * 1, None, None, table, table, EPS, **options)
    values, scale = ops.swiglu_fp8(h, stream)
    normed = ops.group_norm_silu(image, channel, channel, 2, EPS)
    mixed = ops.attention(query, key, value, causal=True)
    return [stream, h, values.float() * scale, mixed, normed, ops.quantize_pixels(normed)]


def _block_inputs(place: str) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(1, 3, 64), (1, 3, 64), (64,), (1, 3, 4 * 64), (3, 32), (1, 4, 6, 5)]
    return [torch.randn(shape).to(place) for shape in shapes]


@PLACES
def test_one_graph_under_compile(place: str) -> None:
    inputs = _block_inputs(place)
    with torch.no_grad():
        eager = _block(*inputs)
        compiled = torch.compile(_block, fullgraph=True, backend="aot_eager")(*inputs)
    for ours, theirs in zip(eager, compiled, strict=True):
        torch.testing.assert_close(ours, theirs)


DIFFERENTIABLE: dict[str, Callable[..., Any]] = {
    "rms_norm": lambda x, y, v: ops.rms_norm(x, v, EPS),
    "residual_norm": lambda x, y, v: ops.residual_norm(x, y, v, EPS)[1],
    "gated_residual_norm": lambda x, y, v: ops.gated_residual_norm(x, y, v, v, EPS)[1],
    "layer_norm": lambda x, y, v: ops.layer_norm(x, v, y[:, :1], EPS),
    "gated_residual_layer_norm": lambda x, y, v: ops.gated_residual_layer_norm(x, y, v, v, v, EPS)[1],
    "joint_norm_rotary": lambda x, y, v: torch.cat(
        ops.joint_norm_rotary(
            torch.cat((x, y, x), -1),
            v.view(2, 2, 8),
            y[0, :, :4],
            y[0, :, 4:8],
            EPS,
            split=1,
            heads=4,
        ),
        dim=2,
    ),
    "linear_gelu": lambda x, y, v: ops.linear_gelu(x, y[0, :, :], v[:3]),
    "rms_norm_silu": lambda x, y, v: ops.rms_norm_silu(x[..., None], v[:3], EPS, channel_bias=v[3:6]),
    "residual_sum": lambda x, y, v: ops.residual_sum(x[..., None], y[..., None], channel_bias=v[:3]),
    "residual_rms_norm_silu": lambda x, y, v: ops.residual_rms_norm_silu(
        x[..., None], y[..., None], v[:3], EPS
    )[1],
    "geglu": lambda x, y, v: ops.geglu(x, y),
    "swiglu": lambda x, y, v: ops.swiglu(x, y),
    "qk_norm_rotary": lambda x, y, v: torch.cat(
        ops.qk_norm_rotary(
            x * 1, v[:8], v[8:16], y[0, :, :4], y[0, :, 4:8], EPS, heads=2, kv_heads=1, interleaved=True
        ),
        dim=2,
    ),
    "group_norm_silu": lambda x, y, v: ops.group_norm_silu(x[..., None], v[:3], v[3:6], 3, EPS),
    "group_norm_silu_taps": lambda x, y, v: ops.group_norm_silu_taps(
        x[..., None], v[:3], v[3:6], y[0, :, :9], 3, EPS
    ),
    "residual_statistics": lambda x, y, v: ops.residual_statistics(x[..., None], y[..., None], 3, EPS)[1],
    "attention": lambda x, y, v: ops.attention(x[:, :, None], y[:, :, None], y[:, :, None]),
    "wide_attention": lambda x, y, v: ops.wide_attention(
        *(p.repeat(1, 1, 10)[:, :, None] for p in (x, y, y))
    ),
}


@PLACES
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_reach_every_input(place: str, name: str) -> None:
    call = DIFFERENTIABLE[name]
    torch.manual_seed(0)
    inputs = [torch.randn(shape).to(place) for shape in ((2, 3, 32), (2, 3, 32), (32,))]
    leaves = [x.clone().requires_grad_() for x in inputs]
    target = torch.randn_like(call(*inputs).float())
    (call(*leaves) * target).sum().backward()
    direction = [torch.randn_like(x) for x in inputs]
    step = 1e-3
    plus, minus = (
        (call(*(x + sign * step * d for x, d in zip(inputs, direction, strict=True))) * target).double().sum()
        for sign in (1, -1)
    )
    slope = sum(
        (leaf.grad * d).double().sum()
        for leaf, d in zip(leaves, direction, strict=True)
        if leaf.grad is not None
    )
    assert slope.item() == pytest.approx((plus - minus).item() / (2 * step), rel=2e-2, abs=2e-2)


def test_a_projection_that_is_differentiated_is_not_overwritten() -> None:
    qkv = torch.randn(1, 3, 32, requires_grad=True)
    before, table = qkv.detach().clone(), torch.randn(3, 4)
    ops.qk_norm_rotary(qkv, None, None, table, table, EPS, heads=2, kv_heads=1, interleaved=True)
    assert torch.equal(qkv, before)


def test_everything_public_is_exported() -> None:
    assert sorted(ops.__all__) == list(ops.__all__)
    assert all(callable(getattr(ops, name)) for name in ops.__all__)
