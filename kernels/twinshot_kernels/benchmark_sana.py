"""What the kernels' benchmark measures for SANA 1.6B and its decoder at 1024x1024, batch 1.

See :mod:`twinshot_kernels.benchmark_cases`. The transformer has 1024 tokens; the decoder's images are those
of its residual blocks and of its widest attention blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import twinshot_kernels as ops
from twinshot_kernels.benchmark_cases import Arguments, Case

DEVICE = "cuda"
EPS = 1e-5
SIDE, HEADS, HEAD_DIM, HIDDEN = 32, 70, 32, 5600
IMAGES = ((128, 1024), (256, 512), (512, 256))
VIT_CHANNELS, VIT_SIDE, VIT_EXPANSION = 512, 128, 4
PRODUCTS = 32
TEXT_TOKENS, PREFIX, TEXT_HEADS, TEXT_KV_HEADS, TEXT_HEAD_DIM, TEXT_HIDDEN = 128, 220, 8, 4, 256, 9216


def sana_cases() -> Iterator[Case]:
    """Name everything that is measured."""
    yield _linear_attention(SIDE * SIDE, HEADS)
    yield _linear_attention(VIT_SIDE**2, 2 * VIT_CHANNELS // HEAD_DIM)
    yield _depthwise_glu(SIDE, HIDDEN)
    yield _depthwise_glu(VIT_SIDE, VIT_EXPANSION * VIT_CHANNELS)
    yield _depthwise_mix()
    for channels, side in IMAGES:
        yield from _between_convolutions(channels, side)
    for (channels, side), (before, _) in pairwise(IMAGES):
        yield _upsample(channels, before, side)
    yield _taps(*IMAGES[0])
    yield _capped_attention()
    yield _geglu()


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)


def _vector(width: int) -> Tensor:
    return torch.rand(width, device=DEVICE) + 0.5


def _case(op: str, shape: str, moved: int, make: Any, **options: Any) -> Case:
    call, plain = (partial(getattr(ops, name), **options) for name in (op, f"{op}_reference"))
    return Case(op, shape, moved, make, call, plain)


def _linear_attention(tokens: int, heads: int) -> Case:
    def make() -> Arguments:
        return _randn(1, tokens, heads, 3, HEAD_DIM).unbind(-2)

    moved, shape = 8 * tokens * heads * HEAD_DIM, f"{tokens}x{heads}x{HEAD_DIM}"
    return _case("linear_attention", shape, moved, make)


def _depthwise_glu(side: int, hidden: int) -> Case:
    def make() -> Arguments:
        return _randn(1, side, side, 2 * hidden), _randn(9, 2 * hidden), _vector(2 * hidden)

    moved = 6 * side * side * hidden + 36 * hidden
    return _case("depthwise_glu", f"{side}x{side}x{2 * hidden}", moved, make)


def _depthwise_mix() -> Case:
    channels = 3 * VIT_CHANNELS

    def make() -> Arguments:
        mix = _randn(channels // HEAD_DIM, HEAD_DIM, HEAD_DIM)
        return _randn(1, VIT_SIDE, VIT_SIDE, channels), _randn(25, channels), mix

    moved = 6 * VIT_SIDE**2 * channels + 2 * channels * (25 + HEAD_DIM)
    return _case("depthwise_mix", f"{VIT_SIDE}x{VIT_SIDE}x{channels}", moved, make)


def _between_convolutions(channels: int, side: int) -> Iterator[Case]:
    size, shape = channels * side * side, f"{side}x{side}x{channels}"

    def activated() -> Arguments:
        return _randn(1, side, side, channels), _vector(channels)

    def normed() -> Arguments:
        x, residual = _randn(1, side, side, channels), _randn(1, side, side, channels)
        return x, _vector(channels), _vector(channels), EPS, residual

    yield _case("bias_silu", shape, 4 * size, activated)
    yield Case("pixel_norm", shape, 6 * size, normed, _pixel_norm, ops.pixel_norm_reference)


def _pixel_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor) -> Tensor:
    return ops.pixel_norm(x, weight, bias, eps, residual=residual)


def _upsample(channels: int, before: int, side: int) -> Case:
    def make() -> Arguments:
        x = _randn(1, side // 2, side // 2, before)
        return _randn(1, side, side, channels), _vector(channels), x

    moved = side * side * (4 * channels + before // 2)
    return _case("upsample_shortcut", f"{side}x{side}x{channels}", moved, make, shuffled=True)


def _taps(channels: int, side: int) -> Case:
    def make() -> Arguments:
        taps = _randn(channels, PRODUCTS) / channels**0.5
        return _randn(1, side, side, channels), _vector(channels), _vector(channels), taps, EPS

    moved = 2 * (channels + PRODUCTS) * side * side + 2 * channels * PRODUCTS
    return _case("pixel_norm_taps", f"{side}x{side}x{channels}x{PRODUCTS}", moved, make)


def _capped_attention() -> Case:
    def make() -> Arguments:
        packed = _randn(1, TEXT_TOKENS, TEXT_HEADS + 2 * TEXT_KV_HEADS, TEXT_HEAD_DIM)
        prefix = (_randn(PREFIX, TEXT_KV_HEADS, TEXT_HEAD_DIM) for _ in range(2))
        return *torch.split(packed, [TEXT_HEADS, TEXT_KV_HEADS, TEXT_KV_HEADS], dim=2), *prefix

    rows = TEXT_TOKENS * (2 * TEXT_HEADS + 2 * TEXT_KV_HEADS) + 2 * PREFIX * TEXT_KV_HEADS
    shape = f"({PREFIX}+{TEXT_TOKENS})x({TEXT_HEADS}+{TEXT_KV_HEADS})x{TEXT_HEAD_DIM}"
    options: dict[str, Any] = {"scale": TEXT_HEAD_DIM**-0.5, "cap": 50.0, "window": 4096}
    return _case("capped_attention", shape, 2 * rows * TEXT_HEAD_DIM, make, **options)


def _geglu() -> Case:
    def make() -> Arguments:
        return torch.chunk(_randn(1, TEXT_TOKENS, 2 * TEXT_HIDDEN), 2, dim=-1)

    return _case("geglu", f"{TEXT_TOKENS}x{TEXT_HIDDEN}", 6 * TEXT_TOKENS * TEXT_HIDDEN, make)
