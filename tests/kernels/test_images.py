"""Kernels on channels-last images: group norm, its statistics, pixels to bytes."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import twinshot_kernels as ops

EPS = 1e-6
Agree = Callable[[Tensor, Tensor, Tensor], None]

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
LAYOUTS = pytest.mark.parametrize("layout", ["channels_last", "planes", "cropped"])
BIASED_LAYOUTS = pytest.mark.parametrize(
    ("layout", "biased"),
    [("channels_last", True), ("channels_last", False), ("planes", True), ("cropped", False)],
)
# Channels, groups, height, width: two values a group; one tile; a short last tile; three channels a group.
SHAPES = pytest.mark.parametrize("shape", [(8, 4, 1, 1), (12, 4, 5, 37), (64, 32, 23, 41), (96, 32, 16, 9)])


@pytest.fixture(autouse=True)
def _few_programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    # So that small images too are shared by several programs of several tiles.
    if "full_size" not in request.node.name:
        for name in ("group_norm_silu", "group_norm_silu_taps", "group_statistics"):
            monkeypatch.setattr(importlib.import_module(f"twinshot_kernels.{name}"), "MAX_PROGRAMS", 4)


def image(
    device: str, layout: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, mean: float = 0.0
) -> Tensor:
    channels, _, height, width = shape
    x = (torch.randn(2, channels, height, width + 3) + mean).to(device, dtype)
    if layout == "channels_last":
        return x[..., 3:].contiguous(memory_format=torch.channels_last)
    return x[..., 3:].contiguous() if layout == "planes" else x[..., 3:]


def exact_statistics(x: Tensor, groups: int) -> Tensor:
    parts = x.double().reshape(x.shape[0], groups, -1)
    return torch.stack((parts.mean(-1), (parts.var(-1, correction=0) + EPS).rsqrt()), dim=-1)


def spread(channels: int, device: str) -> Tensor:
    return torch.randn(channels).to(device)


@DTYPES
@BIASED_LAYOUTS
@SHAPES
def test_group_norm_silu(
    device: str, agree: Agree, dtype: torch.dtype, layout: str, shape: tuple[int, ...], biased: bool
) -> None:
    channels, groups = shape[:2]
    x = image(device, layout, shape, dtype)
    weight, bias, channel_bias = (spread(channels, device).to(dtype) for _ in range(3))
    moved = x.double() + channel_bias.double()[:, None, None] if biased else x.double()
    result = ops.group_norm_silu(x, weight, bias, groups, EPS, channel_bias=channel_bias if biased else None)
    assert result.is_contiguous(memory_format=torch.channels_last)
    exact = functional.silu(functional.group_norm(moved, groups, weight.double(), bias.double(), EPS))
    plain = functional.silu(functional.group_norm(moved.to(dtype), groups, weight, bias, EPS))
    agree(result, exact, plain)


def test_group_norm_without_activation_and_with_known_statistics(device: str, agree: Agree) -> None:
    x, weight, bias = image(device, "planes", (12, 4, 5, 7)), spread(12, device), spread(12, device)
    known = torch.tensor([2.0, 3.0], device=device).expand(2, 4, 2)
    result = ops.group_norm_silu(x, weight, bias, 4, EPS, statistics=known, silu=False)
    exact = (x.double() - 2) * 3 * weight.double()[:, None, None] + bias.double()[:, None, None]
    agree(result, exact, exact.float())


@pytest.mark.parametrize("mean", [0.0, 1000.0])
@SHAPES
def test_group_statistics_do_not_cancel(device: str, shape: tuple[int, ...], mean: float) -> None:
    x, channel_bias = image(device, "channels_last", shape, mean=mean), spread(shape[0], device)
    result = ops.group_statistics(x, shape[1], EPS, channel_bias)
    exact = exact_statistics(x.double() + channel_bias.double()[:, None, None], shape[1])
    assert result.dtype == torch.float32
    torch.testing.assert_close(result[..., 0].double(), exact[..., 0], rtol=1e-6, atol=1e-6)
    if shape[2] > 1:
        torch.testing.assert_close(result[..., 1].double(), exact[..., 1], rtol=2e-4, atol=0)


def test_an_outlier_at_the_origin_of_a_share_spoils_nothing(device: str) -> None:
    x = image(device, "channels_last", (8, 2, 64, 64))
    x[:, :, 0, 0] = 1e4
    exact = exact_statistics(x, 2)
    torch.testing.assert_close(ops.group_statistics(x, 2, EPS).double(), exact, rtol=1e-4, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize(("channels", "side"), [(128, 1024), (256, 512), (512, 128)])
def test_group_norm_silu_at_full_size(agree: Agree, channels: int, side: int) -> None:
    x = torch.randn(1, channels, side, side, device="cuda").bfloat16()
    x, y = (part.contiguous(memory_format=torch.channels_last) for part in (x, x.flip(1) + 3))
    weight, bias = spread(channels, "cuda"), spread(channels, "cuda")
    out, statistics = ops.residual_statistics(x, y, 32, EPS, bias)
    torch.testing.assert_close(statistics.double(), exact_statistics(out, 32), rtol=1e-4, atol=1e-5)
    result = ops.group_norm_silu(out, weight, bias, 32, EPS, statistics=statistics)
    exact = functional.silu(functional.group_norm(out.double(), 32, weight.double(), bias.double(), EPS))
    agree(result, exact, exact.bfloat16())


def test_group_statistics_are_the_same_every_time(device: str) -> None:
    x = image(device, "channels_last", (64, 32, 33, 65))
    assert torch.equal(ops.group_statistics(x, 32, EPS), ops.group_statistics(x, 32, EPS))


@DTYPES
@BIASED_LAYOUTS
@SHAPES
def test_residual_statistics(
    device: str, agree: Agree, dtype: torch.dtype, layout: str, shape: tuple[int, ...], biased: bool
) -> None:
    channels, groups = shape[:2]
    x, y = image(device, layout, shape, dtype), image(device, "channels_last", shape, dtype)
    channel_bias = spread(channels, device) if biased else None
    added = channel_bias[:, None, None] if channel_bias is not None else torch.zeros((), device=device)
    out, statistics = ops.residual_statistics(x, y, groups, EPS, channel_bias)
    assert out.is_contiguous(memory_format=torch.channels_last)
    agree(out, x.double() + y.double() + added.double(), x + y + added.to(dtype))
    exact = exact_statistics(out, groups)
    torch.testing.assert_close(statistics.double(), exact, rtol=2e-4, atol=2e-6)


@DTYPES
@BIASED_LAYOUTS
@SHAPES
def test_norm_and_taps_are_a_convolution(
    implementation: str,
    agree: Agree,
    dtype: torch.dtype,
    layout: str,
    shape: tuple[int, ...],
    biased: bool,
) -> None:
    if implementation == "interpreter" and dtype == torch.bfloat16:
        dtype = torch.float16  # The interpreter multiplies the bits of bf16 as integers.
    device = "cuda" if implementation == "cuda" else "cpu"
    (channels, groups), outputs = shape[:2], 3 if biased else 1
    x = image(device, layout, shape, dtype)
    weight, bias, channel_bias = (spread(channels, device) for _ in range(3))
    kernel = (torch.randn(outputs, channels, 3, 3) / (3 * channels**0.5)).to(device, dtype)
    taps = functional.pad(kernel.permute(1, 2, 3, 0).flatten(1), (0, 5))
    moved = x.double() + channel_bias.double()[:, None, None] if biased else x.double()
    products = ops.group_norm_silu_taps(
        x, weight, bias, taps, groups, EPS, channel_bias=channel_bias if biased else None
    )
    assert products.is_contiguous()
    normed = functional.group_norm(moved, groups, weight.double(), bias.double(), EPS)
    exact = functional.conv2d(functional.silu(normed), kernel.double(), padding=1)
    plain = functional.conv2d(functional.silu(normed).to(dtype), kernel, padding=1)
    agree(ops.sum_taps(products, outputs).to(dtype), exact, plain)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1, 1, 27), (2, 1, 50, 32), (1, 50, 1, 30), (2, 5, 311, 32)])
def test_quantize_taps(device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    products, bias = torch.randn(shape).to(device, dtype), spread(3, device)
    batch, height, width, _ = shape
    pixels = np.broadcast_to(bias.cpu().numpy(), (batch, height, width, 3)).copy()
    given = products.float().cpu().numpy()
    for row, column in np.ndindex(height, width):
        for i, j in np.ndindex(3, 3):
            y, x = row + i - 1, column + j - 1
            if 0 <= y < height and 0 <= x < width:
                first = 3 * (3 * i + j)
                pixels[:, row, column] += given[:, y, x, first : first + 3]
    levels = np.clip(pixels / 2 + 0.5, 0, 1) * 255
    images = ops.quantize_taps(products, bias)
    assert (images.dtype, images.is_contiguous()) == (torch.uint8, True)
    assert np.abs(images.cpu().numpy() - levels).max() <= 0.5 + 1e-3


@LAYOUTS
@DTYPES
@pytest.mark.parametrize("channels", [3, 4, 8])
def test_quantize_pixels(device: str, layout: str, dtype: torch.dtype, channels: int) -> None:
    pixels = 2 * image(device, layout, (channels, 1, 5, 311), dtype)
    channel_bias = spread(channels, device)
    for bias in (None, channel_bias):
        moved = pixels[:, :3].float().cpu().numpy()
        if bias is not None:
            moved = moved + bias[:3].cpu().numpy()[:, None, None]
        levels = np.clip(moved * np.float32(0.5) + np.float32(0.5), 0, 1) * np.float32(255)
        images = ops.quantize_pixels(pixels, channel_bias=bias)
        assert images.is_contiguous()
        assert np.array_equal(images.cpu().numpy(), np.rint(levels).astype(np.uint8).transpose(0, 2, 3, 1))


def test_quantize_pixels_rounds_ties_to_even(device: str) -> None:
    # 255 * (x / 2 + 1/2) is 127.5 at 0, so exactly half way.
    pixels = torch.zeros(1, 3, 1, 1, device=device)
    assert ops.quantize_pixels(pixels).unique().tolist() == [128]


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, vector = torch.randn(1, 6, 2, 2), torch.ones(6)
    for groups in (4, 0):
        with pytest.raises(ValueError, match=f"{groups} groups do not divide 6 channels"):
            ops.group_norm_silu(x, vector, vector, groups, EPS)
        with pytest.raises(ValueError, match=f"{groups} groups do not divide 6 channels"):
            ops.group_statistics(x, groups, EPS)
    with pytest.raises(ValueError, match=r"\(1, 2, 2\); accepted: \(1, 3, 2\)"):
        ops.group_norm_silu(x, vector, vector, 3, EPS, statistics=torch.ones(1, 2, 2))
    with pytest.raises(ValueError, match=r"taps have shape \(5, 27\); accepted: \(6, any\)"):
        ops.group_norm_silu_taps(x, vector, vector, torch.ones(5, 27), 3, EPS)
    with pytest.raises(ValueError, match="26 products a pixel; accepted: at least 27 for 3 channels"):
        ops.quantize_taps(torch.ones(1, 2, 2, 26), torch.ones(3))
    with pytest.raises(ValueError, match=r"y has shape \(1, 6, 2, 1\)"):
        ops.residual_statistics(x, x[..., :1], 3, EPS)
