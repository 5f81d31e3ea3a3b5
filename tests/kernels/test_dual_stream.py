"""What dual-stream blocks are made of: layer norms, gated residuals, GELU, and joint queries and keys."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import twinshot_kernels as ops

EPS = 1e-6
Rows = Callable[..., Tensor]
Agree = Callable[[Tensor, Tensor, Tensor], None]

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
LAYOUTS = pytest.mark.parametrize("layout", ["whole", "slice", "spread"])
SHAPES = pytest.mark.parametrize("shape", [(1, 1, 2), (2, 3, 123), (3, 5, 256), (1, 2, 3072)])
PLACES = pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def normed(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm, by the formula, in the type of ``x``."""
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.pow(2).mean(-1, keepdim=True) + EPS).sqrt()
    return centred / deviation * scale.to(x.dtype) + shift.to(x.dtype)


@DTYPES
@LAYOUTS
@SHAPES
def test_layer_norm(
    rows: Rows, agree: Agree, agree_fp8: Agree, dtype: torch.dtype, layout: str, shape: tuple[int, ...]
) -> None:
    x = rows(layout, *shape, dtype=dtype) + 2
    scale, shift = rows("whole", shape[-1]), rows("whole", shape[-1])
    exact = normed(x.double(), scale, shift)
    result = ops.layer_norm(x, scale, shift, EPS)
    assert result.is_contiguous()
    agree(result, exact, normed(x, scale, shift))
    agree_fp8(*ops.layer_norm_fp8(x, scale, shift, EPS), exact)


@DTYPES
@LAYOUTS
@SHAPES
def test_gated_residual_layer_norm(
    rows: Rows, agree: Agree, agree_fp8: Agree, dtype: torch.dtype, layout: str, shape: tuple[int, ...]
) -> None:
    x, y = rows("slice", *shape, dtype=dtype), rows(layout, *shape, dtype=dtype)
    gain, scale, shift = (rows("whole", shape[-1]) for _ in range(3))
    exact, plain = x.double() + gain.double() * y.double(), x + gain.to(dtype) * y
    total, h = ops.gated_residual_layer_norm(x, y, gain, scale, shift, EPS)
    agree(total, exact, plain)
    agree(h, normed(total.double(), scale, shift), normed(total, scale, shift))
    again, h8, row_scale = ops.gated_residual_layer_norm_fp8(x, y, gain, scale, shift, EPS)
    agree(again, exact, plain)
    agree_fp8(h8, row_scale, normed(again.double(), scale, shift))


@pytest.mark.parametrize("images", [1, 2])
def test_each_image_has_its_own_modulation(rows: Rows, agree: Agree, images: int) -> None:
    x, y = rows("whole", 2, 3, 40), rows("whole", 2, 3, 40)
    gain, scale, shift = (rows("slice", images, 1, 40) for _ in range(3))
    agree(ops.layer_norm(x, scale, shift, EPS), normed(x.double(), scale, shift), normed(x, scale, shift))
    total, h = ops.gated_residual_layer_norm(x, y, gain, scale, shift, EPS)
    agree(total, x.double() + gain.double() * y.double(), x + gain * y)
    agree(h, normed(total.double(), scale, shift), normed(total, scale, shift))


def gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("shape", [(1, 1), (2, 3, 123), (2, 12288)])
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # NumPy's, in the interpreter
def test_gelu_fp8(
    rows: Rows, agree_fp8: Agree, dtype: torch.dtype, layout: str, shape: tuple[int, ...]
) -> None:
    x = 4 * rows(layout, *shape, dtype=dtype)
    agree_fp8(*ops.gelu_fp8(x), gelu(x.double()))


@PLACES
@DTYPES
@pytest.mark.parametrize("outer", [(1,), (2, 3), (1, 129)])
def test_linear_gelu(place: str, dtype: torch.dtype, outer: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(shape).to(place, dtype) for shape in ((*outer, 64), (48, 64), (48,)))
    exact = gelu(x.double() @ weight.double().T + bias.double())
    result = ops.linear_gelu(x, weight, bias)
    assert (result.shape, result.dtype) == ((*outer, 48), dtype)
    error = (result.double() - exact).abs().max() / exact.abs().max()
    assert error < 2 * torch.finfo(dtype).eps + (1e-6 if dtype == torch.float32 else 0)


def turned(x: Tensor, scale: Tensor, angles: Tensor) -> Tensor:
    """Norm and complex product of neighbours in ``x`` ``[B, N, H, D]``, in its type."""
    x = x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * scale.to(x.dtype)
    first, second = x[..., ::2], x[..., 1::2]
    cos, sin = angles.cos().to(x.dtype)[:, None], angles.sin().to(x.dtype)[:, None]
    return torch.stack((first * cos - second * sin, first * sin + second * cos), -1).flatten(-2)


@DTYPES
@pytest.mark.parametrize("split", [0, 3, 7])
@pytest.mark.parametrize(("heads", "width"), [(3, 128), (17, 24), (1, 2)])
def test_joint_norm_rotary(
    device: str, agree: Agree, heads: int, width: int, split: int, dtype: torch.dtype
) -> None:
    qkv = torch.randn(2, 7, 3 * heads * width).to(device, dtype)
    scales, angles = torch.randn(2, 2, width).to(device), torch.randn(7, width // 2).to(device)
    before = qkv.clone().unflatten(-1, (3, heads, width))
    parts = ops.joint_norm_rotary(qkv, scales, angles.cos(), angles.sin(), EPS, split=split, heads=heads)
    storage = qkv.untyped_storage().data_ptr()
    assert all(part.untyped_storage().data_ptr() == storage for part in parts)
    for kind in range(2):
        for stream, rows in enumerate((slice(0, split), slice(split, 7))):
            part, turn = before[:, rows, kind], angles[rows]
            if part.numel():
                exact = turned(part.double(), scales[stream, kind], turn.double())
                agree(parts[kind][:, rows], exact, turned(part, scales[stream, kind], turn))
    assert torch.equal(parts[2], before[:, :, 2])


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, vector = torch.randn(2, 3, 8), torch.ones(8)
    with pytest.raises(ValueError, match=r"shift has shape \(7,\)"):
        ops.layer_norm(x, vector, vector[:7], EPS)
    with pytest.raises(ValueError, match=r"gain has shape \(7,\)"):
        ops.gated_residual_layer_norm(x, x, vector[:7], vector, vector, EPS)
    with pytest.raises(ValueError, match=r"y has shape \(2, 2, 8\)"):
        ops.gated_residual_layer_norm_fp8(x, x[:, :2], vector, vector, vector, EPS)
    qkv, scales, table = torch.randn(1, 3, 48), torch.ones(2, 2, 8), torch.ones(3, 4)
    with pytest.raises(ValueError, match="width 48 is not 15 heads of even width"):
        ops.joint_norm_rotary(qkv, scales, table, table, EPS, split=1, heads=5)
    with pytest.raises(ValueError, match=r"scales have shape \(1, 2, 8\); accepted here: \(2, 2, 8\)"):
        ops.joint_norm_rotary(qkv, scales[:1], table, table, EPS, split=1, heads=2)
    with pytest.raises(ValueError, match=r"table has shape \(2, 4\); accepted here: \(3, 4\)"):
        ops.joint_norm_rotary(qkv, scales, table[:2], table[:2], EPS, split=1, heads=2)
    with pytest.raises(ValueError, match="meet at row 4; accepted here: 0 to 3"):
        ops.joint_norm_rotary(qkv, scales, table, table, EPS, split=4, heads=2)
