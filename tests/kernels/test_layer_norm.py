"""Layer norms with modulation, gates before them, and GELU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import twinshot_kernels as ops

EPS = 1e-6
Rows = Callable[..., Tensor]
Agree = Callable[[Tensor, Tensor, Tensor], None]

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
LAYOUTS = pytest.mark.parametrize("layout", ["whole", "slice", "spread"])
SHAPES = pytest.mark.parametrize("shape", [(1, 1, 2), (2, 3, 123), (3, 5, 256), (1, 2, 1536)])


def exact_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    x = x.double()
    return (x - x.mean(-1, keepdim=True)) / (
        x.var(-1, keepdim=True, correction=0) + EPS
    ).sqrt() * scale.double() + shift.double()


def plain_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    normed = functional.layer_norm(x, x.shape[-1:], eps=EPS)
    return normed * scale.to(x.dtype) + shift.to(x.dtype)


@DTYPES
@LAYOUTS
@SHAPES
def test_layer_norm(
    rows: Rows, agree: Agree, agree_fp8: Agree, dtype: torch.dtype, layout: str, shape: tuple[int, ...]
) -> None:
    # A mean far from 0 shows whether the variance is that of what is left without it.
    x = rows(layout, *shape, dtype=dtype) + 3
    scale, shift = rows("whole", shape[-1]), rows("slice", shape[-1])
    result = ops.layer_norm(x, scale, shift, EPS)
    assert result.is_contiguous()
    agree(result, exact_norm(x, scale, shift), plain_norm(x, scale, shift))
    agree_fp8(*ops.layer_norm_fp8(x, scale, shift, EPS), exact_norm(x, scale, shift))


@DTYPES
@LAYOUTS
@SHAPES
@pytest.mark.parametrize("gated", [True, False])
def test_gated_residual_layer_norm(
    rows: Rows,
    agree: Agree,
    agree_fp8: Agree,
    dtype: torch.dtype,
    layout: str,
    shape: tuple[int, ...],
    gated: bool,
) -> None:
    x, y = rows(layout, *shape, dtype=dtype), rows("slice", *shape, dtype=dtype)
    gate, scale, shift = (rows("whole", shape[-1]) for _ in range(3))
    factor = gate if gated else torch.ones_like(gate)
    total, h = ops.gated_residual_layer_norm(x, y, gate if gated else None, scale, shift, EPS)
    agree(total, x.double() + factor.double() * y.double(), x + factor.to(dtype) * y)
    agree(h, exact_norm(total, scale, shift), plain_norm(total, scale, shift))
    again, h8, row_scale = ops.gated_residual_layer_norm_fp8(x, y, gate if gated else None, scale, shift, EPS)
    agree(again, x.double() + factor.double() * y.double(), x + factor.to(dtype) * y)
    agree_fp8(h8, row_scale, exact_norm(again, scale, shift))


@pytest.mark.parametrize("images", [1, 2])
def test_each_image_has_its_own_modulation(rows: Rows, agree: Agree, images: int) -> None:
    x, y = rows("whole", 2, 3, 40), rows("whole", 2, 3, 40)
    # Slices of one wide vector an image, as adaLN makes them.
    gate, scale, shift = rows("whole", images, 1, 120).chunk(3, dim=-1)
    agree(ops.layer_norm(x, scale, shift, EPS), exact_norm(x, scale, shift), plain_norm(x, scale, shift))
    total, h = ops.gated_residual_layer_norm(x, y, gate, scale, shift, EPS)
    agree(total, x.double() + gate.double() * y.double(), x + gate * y)
    agree(h, exact_norm(total, scale, shift), plain_norm(total, scale, shift))


def exact_gelu(x: Tensor) -> Tensor:
    x = x.double()
    return x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("shape", [(1, 1), (2, 3, 123), (5, 2049), (2, 10240)])
def test_gelu_and_its_gate(
    rows: Rows, agree: Agree, agree_fp8: Agree, dtype: torch.dtype, layout: str, shape: tuple[int, ...]
) -> None:
    x, up = rows(layout, *shape, dtype=dtype), rows("slice", *shape, dtype=dtype)
    agree_fp8(*ops.gelu_fp8(x), exact_gelu(x))
    exact = exact_gelu(x) * up.double()
    agree(ops.geglu(x, up), exact, functional.gelu(x, approximate="tanh") * up)
    agree_fp8(*ops.geglu_fp8(x, up), exact)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # NumPy's, in the interpreter
def test_gelu_of_large_values_is_finite(rows: Rows) -> None:
    gate = torch.tensor([[-1e4, -100.0, 100.0, 1e4]], device=rows("whole", 1).device)
    assert ops.geglu(gate, torch.ones_like(gate)).tolist() == [[0.0, 0.0, 100.0, 1e4]]


@DTYPES
@pytest.mark.parametrize("outer", [(1,), (2, 3), (1, 129)])
def test_linear_gelu(rows: Rows, agree: Agree, dtype: torch.dtype, outer: tuple[int, ...]) -> None:
    x, weight = rows("whole", *outer, 64, dtype=dtype), rows("whole", 48, 64, dtype=dtype) / 8
    bias = rows("whole", 48, dtype=dtype)
    exact = exact_gelu(x.double() @ weight.double().t() + bias.double())
    plain = functional.gelu(functional.linear(x, weight, bias), approximate="tanh")
    agree(ops.linear_gelu(x, weight, bias), exact, plain)


def test_vectors_and_branches_that_do_not_fit_are_refused() -> None:
    x, one = torch.randn(2, 5, 8), torch.ones(8)
    for call in (
        lambda bad: ops.layer_norm(x, bad, one, EPS),
        lambda bad: ops.layer_norm_fp8(x, one, bad, EPS),
        lambda bad: ops.gated_residual_layer_norm(x, x, bad, one, one, EPS),
        lambda bad: ops.gated_residual_layer_norm_fp8(x, x, None, one, bad, EPS),
    ):
        with pytest.raises(ValueError, match=r"accepted beside \(2, 5, 8\): \[N\] or \[B, 1, N\]"):
            call(torch.ones(7))
    with pytest.raises(ValueError, match=r"y has shape \(1, 5, 8\); accepted: \(2, 5, 8\)"):
        ops.gated_residual_layer_norm(x, x[:1], one, one, one, EPS)
    with pytest.raises(ValueError, match=r"up has shape \(1, 5, 8\); accepted: \(2, 5, 8\)"):
        ops.geglu(x, x[:1])
