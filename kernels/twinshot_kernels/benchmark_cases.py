"""What the kernels' benchmark measures: every operation at the shapes of Z-Image at 1024x1024, batch 1.

Operations that only Qwen-Image has are at its shapes, with as many tokens.

Rows are 4096 image and 128 text tokens; the text encoder has 128; images are those of the decoder's four
resolutions. Bytes are what must move through memory, operations what the formula needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import twinshot_kernels as ops

DEVICE = "cuda"
EPS = 1e-6
TOKENS, WIDTH, HIDDEN, HEADS, HEAD_DIM = 4224, 3840, 10240, 30, 128
TEXT_TOKENS, TEXT_WIDTH, TEXT_HIDDEN, TEXT_HEADS, TEXT_KV_HEADS = 128, 2560, 9728, 32, 8
IMAGES, GROUPS = ((128, 1024), (256, 512), (512, 256), (512, 128)), 32
PRODUCTS = 32
DUAL_WIDTH, DUAL_HIDDEN, DUAL_HEADS, DUAL_IMAGES = 3072, 12288, 24, ((96, 1024), (192, 512), (384, 256))
WIDE_TOKENS, WIDE_HEAD_DIMS = 16384, (512, 384)

Arguments = tuple[Any, ...]
Call = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One operation on one shape.

    ``make`` draws a set of arguments; ``call`` runs the operation on them and ``plain`` the same in plain
    torch. ``operations`` is 0 where bytes are the limit.
    """

    op: str
    shape: str
    bytes: int
    make: Callable[[], Arguments]
    call: Call
    plain: Call
    operations: int = 0
    dtype: str = "bf16"


def cases() -> Iterator[Case]:
    """Name everything that is measured."""
    yield from _norms(TOKENS, WIDTH)
    yield from _norms(TEXT_TOKENS, TEXT_WIDTH)
    yield _rotary(TOKENS, HEADS, HEADS, interleaved=True)
    yield _rotary(TEXT_TOKENS, TEXT_HEADS, TEXT_KV_HEADS, interleaved=False)
    yield from _layer_norms(TOKENS, DUAL_WIDTH)
    yield _joint_rotary(TOKENS, DUAL_HEADS)
    yield _linear_gelu(TOKENS, DUAL_WIDTH, DUAL_HIDDEN)
    yield _gelu(TOKENS, DUAL_HIDDEN)
    for channels, side in DUAL_IMAGES:
        yield from _pixel_norms(channels, side)
    yield from _activations(TOKENS, HIDDEN)
    yield from _activations(TEXT_TOKENS, TEXT_HIDDEN)
    for channels, side in IMAGES:
        yield from _images(channels, side)
    yield _taps(*IMAGES[0])
    yield _sums(IMAGES[0][1])
    yield _pixels(IMAGES[0][1])
    yield _attention()
    yield from (_wide_attention(width) for width in WIDE_HEAD_DIMS)
    for inputs, outputs in ((WIDTH, WIDTH), (WIDTH, 2 * HIDDEN), (HIDDEN, WIDTH)):
        yield _linear(inputs, outputs)


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)


def _vector(width: int) -> Tensor:
    return torch.rand(width, device=DEVICE) + 0.5


def _norms(tokens: int, width: int) -> Iterator[Case]:
    size, shape = tokens * width, f"{tokens}x{width}"
    for op, moved, streams, vectors in (
        ("rms_norm", 4, 1, 1),
        ("rms_norm_fp8", 3, 1, 1),
        ("residual_norm", 8, 2, 1),
        ("residual_norm_fp8", 7, 2, 1),
        ("gated_residual_norm", 8, 2, 2),
        ("gated_residual_norm_fp8", 7, 2, 2),
    ):
        make = partial(_norm_arguments, tokens, width, streams, vectors)
        yield Case(op, shape, moved * size, make, getattr(ops, op), getattr(ops, f"{op}_reference"))

    def rows() -> Arguments:
        return (_randn(1, tokens, width),)

    yield Case("quantize_rows", shape, 3 * size, rows, ops.quantize_rows, ops.quantize_rows_reference)


def _norm_arguments(tokens: int, width: int, streams: int, vectors: int) -> Arguments:
    return *(_randn(1, tokens, width) for _ in range(streams)), *(_vector(width) for _ in range(vectors)), EPS


def _rotary(tokens: int, heads: int, kv_heads: int, *, interleaved: bool) -> Case:
    options: dict[str, Any] = {"heads": heads, "kv_heads": kv_heads, "interleaved": interleaved}
    return Case(
        "qk_norm_rotary",
        f"{tokens}x({heads}+{kv_heads})x{HEAD_DIM}",
        4 * tokens * (heads + kv_heads) * HEAD_DIM,
        partial(_rotary_arguments, tokens, heads + 2 * kv_heads),
        partial(ops.qk_norm_rotary, **options),
        partial(ops.qk_norm_rotary_reference, **options),
    )


def _rotary_arguments(tokens: int, heads: int) -> Arguments:
    angles = torch.randn(tokens, HEAD_DIM // 2, device=DEVICE)
    scales = _vector(HEAD_DIM), _vector(HEAD_DIM)
    return _randn(1, tokens, heads * HEAD_DIM), *scales, angles.cos(), angles.sin(), EPS


def _layer_norms(tokens: int, width: int) -> Iterator[Case]:
    size, shape = tokens * width, f"{tokens}x{width}"
    for op, moved, streams, vectors in (
        ("layer_norm", 4, 1, 2),
        ("layer_norm_fp8", 3, 1, 2),
        ("gated_residual_layer_norm", 8, 2, 3),
        ("gated_residual_layer_norm_fp8", 7, 2, 3),
    ):
        make = partial(_norm_arguments, tokens, width, streams, vectors)
        yield Case(op, shape, moved * size, make, getattr(ops, op), getattr(ops, f"{op}_reference"))


def _joint_rotary(tokens: int, heads: int) -> Case:
    split = tokens - tokens // 33

    def make() -> Arguments:
        angles = torch.randn(tokens, HEAD_DIM // 2, device=DEVICE)
        scales = torch.rand(2, 2, HEAD_DIM, device=DEVICE) + 0.5
        return _randn(1, tokens, 3 * heads * HEAD_DIM), scales, angles.cos(), angles.sin()

    def plain(qkv: Tensor, scales: Tensor, cos: Tensor, sin: Tensor) -> Any:
        return ops.joint_norm_rotary_reference(qkv, scales, cos, sin, split, EPS, heads)

    call = partial(ops.joint_norm_rotary, eps=EPS, split=split, heads=heads)
    shape, moved = f"{tokens}x({heads}+{heads})x{HEAD_DIM}", 8 * tokens * heads * HEAD_DIM
    return Case("joint_norm_rotary", shape, moved, make, call, plain)


def _linear_gelu(tokens: int, width: int, hidden: int) -> Case:
    def make() -> Arguments:
        return _randn(tokens, width), _randn(hidden, width) / width**0.5, _randn(hidden)

    moved = 2 * (tokens * width + hidden * width + hidden + tokens * hidden)
    shape, operations = f"{tokens}x{width}x{hidden}", 2 * tokens * width * hidden
    plain = ops.linear_gelu_reference
    return Case("linear_gelu", shape, moved, make, ops.linear_gelu, plain, operations)


def _gelu(tokens: int, hidden: int) -> Case:
    def make() -> Arguments:
        return (_randn(1, tokens, hidden),)

    moved, shape = 3 * tokens * hidden, f"{tokens}x{hidden}"
    return Case("gelu_fp8", shape, moved, make, ops.gelu_fp8, ops.gelu_fp8_reference)


def _pixel_norms(channels: int, side: int) -> Iterator[Case]:
    size, shape = channels * side * side, f"{channels}x{side}x{side}"

    def make(count: int) -> Arguments:
        images = (_randn(1, channels, side, side) for _ in range(count))
        return *(x.contiguous(memory_format=torch.channels_last) for x in images), _vector(channels), EPS

    one, two = partial(make, 1), partial(make, 2)
    plain = ops.residual_rms_norm_silu_reference
    yield Case("rms_norm_silu", shape, 4 * size, one, ops.rms_norm_silu, ops.rms_norm_silu_reference)
    yield Case("residual_rms_norm_silu", shape, 8 * size, two, ops.residual_rms_norm_silu, plain)


def _activations(tokens: int, hidden: int) -> Iterator[Case]:
    size, shape = tokens * hidden, f"{tokens}x{hidden}"

    def halves() -> Arguments:
        return torch.chunk(_randn(1, tokens, 2 * hidden), 2, dim=-1)

    yield Case("swiglu", shape, 6 * size, halves, ops.swiglu, ops.swiglu_reference)
    yield Case("swiglu_fp8", shape, 5 * size, halves, ops.swiglu_fp8, ops.swiglu_fp8_reference)


def _images(channels: int, side: int) -> Iterator[Case]:
    size, shape = channels * side * side, f"{channels}x{side}x{side}"

    def make(count: int) -> Arguments:
        images = (_randn(1, channels, side, side) for _ in range(count))
        last = (x.contiguous(memory_format=torch.channels_last) for x in images)
        return *last, GROUPS, EPS, _vector(channels)

    one, two = partial(make, 1), partial(make, 2)
    plain, plain_residual = ops.group_statistics_reference, ops.residual_statistics_reference
    yield Case("group_statistics", shape, 2 * size, one, ops.group_statistics, plain)
    yield Case("residual_statistics", shape, 6 * size, two, ops.residual_statistics, plain_residual)
    yield Case("group_norm_silu", shape, 6 * size, one, _group_norm, _plain_group_norm)


def _group_norm(x: Tensor, groups: int, eps: float, vector: Tensor) -> Tensor:
    return ops.group_norm_silu(x, vector, vector, groups, eps, channel_bias=vector)


def _plain_group_norm(x: Tensor, groups: int, eps: float, vector: Tensor) -> Tensor:
    vector = vector.to(x.dtype)
    return functional.silu(functional.group_norm(x + vector[:, None, None], groups, vector, vector, eps))


def _taps(channels: int, side: int) -> Case:
    def make() -> Arguments:
        x = _randn(1, channels, side, side).contiguous(memory_format=torch.channels_last)
        taps = _randn(channels, PRODUCTS) / channels**0.5
        return x, _vector(channels), _vector(channels), taps, GROUPS, EPS

    # Two passes over the image, as for the norm alone; the taps, once; 16 bit for each product.
    moved = (4 * channels + 2 * PRODUCTS) * side * side + 2 * channels * PRODUCTS
    shape = f"{channels}x{side}x{side}x{PRODUCTS}"
    plain = ops.group_norm_silu_taps_reference
    return Case("group_norm_silu_taps", shape, moved, make, ops.group_norm_silu_taps, plain)


def _sums(side: int) -> Case:
    def make() -> Arguments:
        return _randn(1, side, side, PRODUCTS).half(), _vector(3)

    moved, shape = (2 * PRODUCTS + 3) * side * side, f"{side}x{side}x{PRODUCTS}"
    return Case("quantize_taps", shape, moved, make, ops.quantize_taps, ops.quantize_taps_reference)


def _pixels(side: int) -> Case:
    def make() -> Arguments:
        return (_randn(1, 8, side, side).contiguous(memory_format=torch.channels_last),)

    # A sector of 32 bytes holds two whole pixels, so all eight channels are read; three bytes are written.
    moved, shape = (16 + 3) * side * side, f"8x{side}x{side}"
    return Case("quantize_pixels", shape, moved, make, ops.quantize_pixels, ops.quantize_pixels_reference)


def _attention() -> Case:
    def make() -> Arguments:
        return torch.chunk(_randn(1, TOKENS, 3 * HEADS, HEAD_DIM), 3, dim=2)

    size, shape = TOKENS * HEADS * HEAD_DIM, f"{TOKENS}x{HEADS}x{HEAD_DIM}"
    return Case("attention", shape, 8 * size, make, ops.attention, _plain_attention, 4 * TOKENS * size)


def _plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _wide_attention(width: int) -> Case:
    def make() -> Arguments:
        return torch.chunk(_randn(1, WIDE_TOKENS, 1, 3 * width), 3, dim=-1)

    size, shape = WIDE_TOKENS * width, f"{WIDE_TOKENS}x{width}"
    return Case(
        "wide_attention", shape, 8 * size, make, ops.wide_attention, _two_products, 4 * WIDE_TOKENS * size
    )


def _two_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    q, k, v = (x.squeeze(2) for x in (query, key, value))
    scores = q @ k.transpose(-2, -1) * query.shape[-1] ** -0.5
    mixed: Tensor = scores.softmax(-1) @ v
    return mixed.unsqueeze(2)


def _linear(inputs: int, outputs: int) -> Case:
    def make() -> Arguments:
        x, weight = _randn(TOKENS, inputs), _randn(outputs, inputs)
        x8, x_scale = ops.quantize_rows(x)
        weight8, weight_scale = ops.quantize_rows(weight)
        return x, weight, x8, x_scale, weight8, weight_scale.flatten()

    moved = TOKENS * inputs + outputs * inputs + 2 * TOKENS * outputs
    shape, operations = f"{TOKENS}x{inputs}x{outputs}", 2 * TOKENS * inputs * outputs
    return Case("scaled_linear", shape, moved, make, _scaled_linear, _plain_linear, operations, "fp8")


def _scaled_linear(
    _x: Tensor, _weight: Tensor, x8: Tensor, x_scale: Tensor, weight8: Tensor, weight_scale: Tensor
) -> Tensor:
    return ops.scaled_linear(x8, x_scale, weight8, weight_scale)


def _plain_linear(x: Tensor, weight: Tensor, *_quantised: Tensor) -> Tensor:
    return functional.linear(x, weight)
