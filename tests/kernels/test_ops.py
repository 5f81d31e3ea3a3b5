"""Every operation against a formula written independently here."""

import numpy as np
import pytest
import torch
from torch import Tensor

import twinshot_kernels as ops

DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)])


def far(actual: Tensor, expected: Tensor) -> float:
    """Largest error relative to the largest value."""
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())


def strided(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A random tensor whose last axis is not contiguous."""
    return torch.randn(*shape[:-1], 2 * shape[-1]).to(dtype)[..., ::2]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 7), (2, 3, 5, 16), (5, 123)])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    x, weight = strided(*shape, dtype=dtype), torch.randn(shape[-1]).to(dtype)
    wide = x.double()
    expected = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    result = ops.rms_norm(x, weight, 1e-5)
    assert result.dtype == dtype
    assert far(result, expected) < tolerance


def test_rms_norm_keeps_the_type_of_its_input() -> None:
    assert ops.rms_norm(torch.randn(2, 8).bfloat16(), torch.ones(8), 1e-5).dtype == torch.bfloat16


@DTYPES
def test_rotary_is_a_complex_product(dtype: torch.dtype, tolerance: float) -> None:
    x, angles = strided(2, 5, 3, 14, dtype=dtype), torch.randn(5, 7)
    pairs = torch.view_as_complex(x.float().contiguous().reshape(2, 5, 3, 7, 2))
    expected = torch.view_as_real(pairs * torch.polar(torch.ones(5, 7), angles)[:, None]).flatten(-2)
    result = ops.rotary(x, angles.cos(), angles.sin())
    assert result.dtype == dtype
    assert far(result, expected) < tolerance


@DTYPES
def test_swiglu(dtype: torch.dtype, tolerance: float) -> None:
    gate, up = strided(3, 11, dtype=dtype), strided(3, 11, dtype=dtype)
    expected = gate.double() / (1 + (-gate.double()).exp()) * up.double()
    assert far(ops.swiglu(gate, up), expected) < 2 * tolerance


@DTYPES
@pytest.mark.parametrize("keys", [5, 33])
def test_attention(keys: int, dtype: torch.dtype, tolerance: float) -> None:
    query, key, value = (
        strided(2, 5, 3, 8, dtype=dtype),
        *(strided(2, keys, 3, 8, dtype=dtype) for _ in range(2)),
    )
    scores = torch.einsum("bnhd,bmhd->bhnm", query.double(), key.double()) / 8**0.5
    expected = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), value.double())
    assert far(ops.attention(query, key, value), expected) < tolerance
    assert far(ops.attention_reference(query, key, value), expected) < tolerance


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_quantize_pixels(layout: torch.memory_format) -> None:
    pixels = (torch.randn(2, 3, 5, 7) * 2).contiguous(memory_format=layout)
    images = ops.quantize_pixels(pixels)
    expected = np.round(np.clip(pixels.numpy() / 2 + 0.5, 0, 1) * np.float32(255)).astype(np.uint8)
    assert images.is_contiguous()
    assert np.array_equal(images.numpy(), expected.transpose(0, 2, 3, 1))


def test_quantize_pixels_reaches_both_ends() -> None:
    ends = torch.tensor([-9.0, -1.0, 1.0, 9.0]).reshape(1, 1, 1, 4)
    assert ops.quantize_pixels(ends).flatten().tolist() == [0, 0, 255, 255]


def test_every_differentiable_operation_has_exact_gradients() -> None:
    x, y = torch.randn(1, 3, 2, 4, requires_grad=True), torch.randn(1, 3, 2, 4, requires_grad=True)
    angles = torch.randn(3, 2)
    turned = ops.rotary(ops.rms_norm(x, torch.ones(4), 1e-5), angles.cos(), angles.sin())
    ops.attention(turned, y, ops.swiglu(x, y)).square().sum().backward()
    direct = torch.func.grad(lambda x: _same_in_fp64(x, y.detach().double(), angles.double()))(
        x.detach().double()
    )
    assert x.grad is not None
    assert far(x.grad, direct) < 1e-5


def _same_in_fp64(x: Tensor, y: Tensor, angles: Tensor) -> Tensor:
    normed = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    even, odd = normed[..., ::2], normed[..., 1::2]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
    weights = (torch.einsum("bnhd,bmhd->bhnm", turned, y) / 2).softmax(-1)
    return torch.einsum("bhnm,bmhd->bnhd", weights, x * x.sigmoid() * y).square().sum()
