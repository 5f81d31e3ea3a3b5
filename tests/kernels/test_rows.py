"""Kernels on rows: norms, residuals, activations and their fp8 forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import twinshot_kernels as ops

EPS = 1e-5
Rows = Callable[..., Tensor]
Agree = Callable[[Tensor, Tensor, Tensor], None]

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
LAYOUTS = pytest.mark.parametrize("layout", ["whole", "slice", "spread"])
SHAPES = pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 123), (3, 5, 256), (1, 2, 3840)])
SCALES = pytest.mark.parametrize("images", [None, 1, 2])


def exact_norm(x: Tensor, scale: Tensor) -> Tensor:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * scale.double()


def plain_norm(x: Tensor, scale: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * scale.to(x.dtype)


def vector(rows: Rows, images: int | None, width: int) -> Tensor:
    return rows("whole", width) if images is None else rows("slice", images, 1, width)


@DTYPES
@LAYOUTS
@SHAPES
def test_rms_norm(rows: Rows, agree: Agree, dtype: torch.dtype, layout: str, shape: tuple[int, ...]) -> None:
    x, scale = rows(layout, *shape, dtype=dtype), rows("whole", shape[-1])
    result = ops.rms_norm(x, scale, EPS)
    assert result.is_contiguous()
    agree(result, exact_norm(x, scale), plain_norm(x, scale))


@SCALES
def test_each_image_has_its_own_gain_and_scale(rows: Rows, agree: Agree, images: int | None) -> None:
    x, y = rows("whole", 2, 3, 40), rows("whole", 2, 3, 40)
    gain, scale = vector(rows, images, 40), vector(rows, images, 40)
    agree(ops.rms_norm(x, scale, EPS), exact_norm(x, scale), plain_norm(x, scale))
    for total, h in (
        ops.residual_norm(x, y, scale, EPS),
        ops.gated_residual_norm(x, y, gain, scale, EPS),
        ops.gated_residual_norm(x, y, rows("whole", 40), scale, EPS),
    ):
        agree(h, exact_norm(total, scale), plain_norm(total, scale))
    total, _ = ops.gated_residual_norm(x, y, gain, rows("whole", 40), EPS)
    agree(total, x.double() + exact_norm(y, gain), x + plain_norm(y, gain))


@DTYPES
@LAYOUTS
@SHAPES
def test_rms_norm_fp8(
    rows: Rows, agree_fp8: Agree, dtype: torch.dtype, layout: str, shape: tuple[int, ...]
) -> None:
    x, scale = rows(layout, *shape, dtype=dtype), rows("whole", shape[-1])
    agree_fp8(*ops.rms_norm_fp8(x, scale, EPS), exact_norm(x, scale))


@DTYPES
@LAYOUTS
@SHAPES
def test_residual_norm(
    rows: Rows,
    agree: Agree,
    agree_fp8: Agree,
    dtype: torch.dtype,
    layout: str,
    shape: tuple[int, ...],
) -> None:
    x, y = rows("whole", *shape, dtype=dtype), rows(layout, *shape, dtype=dtype)
    scale = rows("whole", shape[-1])
    total, h = ops.residual_norm(x, y, scale, EPS)
    agree(total, x.double() + y.double(), x + y)
    agree(h, exact_norm(total, scale), plain_norm(total, scale))
    again, h8, row_scale = ops.residual_norm_fp8(x, y, scale, EPS)
    agree(again, x.double() + y.double(), x + y)
    agree_fp8(h8, row_scale, exact_norm(again, scale))


@DTYPES
@LAYOUTS
@SHAPES
def test_gated_residual_norm(
    rows: Rows,
    agree: Agree,
    agree_fp8: Agree,
    dtype: torch.dtype,
    layout: str,
    shape: tuple[int, ...],
) -> None:
    x, y = rows(layout, *shape, dtype=dtype), rows("slice", *shape, dtype=dtype)
    gain, scale = rows("whole", shape[-1]), rows("whole", shape[-1])
    total, h = ops.gated_residual_norm(x, y, gain, scale, EPS)
    agree(total, x.double() + exact_norm(y, gain), x + plain_norm(y, gain))
    agree(h, exact_norm(total, scale), plain_norm(total, scale))
    # Compiled apart, the two forms may round the sum differently in its last bit.
    again, h8, row_scale = ops.gated_residual_norm_fp8(x, y, gain, scale, EPS)
    agree(again, x.double() + exact_norm(y, gain), x + plain_norm(y, gain))
    agree_fp8(h8, row_scale, exact_norm(again, scale))


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("shape", [(1, 1), (2, 3, 123), (5, 2049), (2, 10240)])
def test_swiglu(
    rows: Rows, agree: Agree, agree_fp8: Agree, dtype: torch.dtype, layout: str, shape: tuple[int, ...]
) -> None:
    gate, up = rows(layout, *shape, dtype=dtype), rows("slice", *shape, dtype=dtype)
    exact = gate.double() / (1 + (-gate.double()).exp()) * up.double()
    agree(ops.swiglu(gate, up), exact, functional.silu(gate) * up)
    agree_fp8(*ops.swiglu_fp8(gate, up), exact)


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("shape", [(1, 1), (2, 3, 123), (5, 2049), (2, 10240)])
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # NumPy's, in the interpreter
def test_geglu(
    rows: Rows, agree: Agree, agree_fp8: Agree, dtype: torch.dtype, layout: str, shape: tuple[int, ...]
) -> None:
    gate, up = 4 * rows(layout, *shape, dtype=dtype), rows("slice", *shape, dtype=dtype)
    inner = (2 / torch.pi) ** 0.5 * (gate.double() + 0.044715 * gate.double() ** 3)
    exact = gate.double() / 2 * (1 + inner.tanh()) * up.double()
    agree(ops.geglu(gate, up), exact, functional.gelu(gate, approximate="tanh") * up)
    agree_fp8(*ops.geglu_fp8(gate, up), exact)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # NumPy's, in the interpreter
def test_swiglu_of_large_values_is_finite(rows: Rows) -> None:
    gate = torch.tensor([[-1e4, -100.0, 100.0, 1e4]], device=rows("whole", 1).device)
    assert ops.swiglu(gate, torch.ones_like(gate)).tolist() == [[0.0, 0.0, 100.0, 1e4]]


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("shape", [(1, 1), (2, 3, 123), (7, 3840)])
def test_quantize_rows(
    rows: Rows, agree_fp8: Agree, dtype: torch.dtype, layout: str, shape: tuple[int, ...]
) -> None:
    x = rows(layout, *shape, dtype=dtype) * torch.logspace(-6, 6, shape[-1], device=rows("whole", 1).device)
    x = x.to(dtype)
    values, scale = ops.quantize_rows(x)
    assert scale.shape == (*shape[:-1], 1)
    agree_fp8(values, scale, x.double())


@pytest.mark.gpu
@DTYPES
def test_quantize_rows_rounds_as_torch_does(dtype: torch.dtype) -> None:
    x = torch.randn(129, 3840, device="cuda").to(dtype)
    amax = x.float().abs().amax(-1, keepdim=True)
    values, scale = ops.quantize_rows(x)
    # Between two tensors, division is rounded correctly; by a number, torch multiplies with its inverse.
    largest = torch.full_like(amax, 448)
    assert torch.equal(scale, amax / largest)
    assert torch.equal(
        values.view(torch.uint8), (x.float() * (largest / amax)).to(values.dtype).view(torch.uint8)
    )


def test_a_row_of_zeros_stays_zero_in_fp8(rows: Rows) -> None:
    x = rows("whole", 3, 16)
    x[1] = 0
    values, scale = ops.quantize_rows(x)
    assert values[1].float().eq(0).all()
    assert scale.isfinite().all()
    assert (scale > 0).all()


def test_the_largest_value_becomes_448(rows: Rows) -> None:
    x = rows("whole", 64, 33)
    values, _ = ops.quantize_rows(x)
    assert values.to(torch.float8_e4m3fn).float().abs().amax(-1).eq(448).all()


def test_no_rows_are_no_work(rows: Rows) -> None:
    x = rows("whole", 2, 0, 8)
    assert ops.rms_norm(x, rows("whole", 8), EPS).shape == (2, 0, 8)


def test_norms_ignore_what_lies_beside_a_strided_row(rows: Rows) -> None:
    wide = torch.full((4, 24), float("nan"), device=rows("whole", 1).device)
    wide[:, 5:12] = rows("whole", 4, 7)
    assert ops.rms_norm(wide[:, 5:12], rows("whole", 7), EPS).isfinite().all()


@pytest.mark.parametrize("shape", [(7,), (2, 1, 9), (3, 1, 8), (2, 2, 8), (8, 1)])
def test_a_scale_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    x = torch.randn(2, 5, 8)
    scale = torch.ones(shape)
    for call in (
        lambda: ops.rms_norm(x, scale, EPS),
        lambda: ops.rms_norm_fp8(x, scale, EPS),
        lambda: ops.residual_norm(x, x, scale, EPS),
        lambda: ops.gated_residual_norm(x, x, scale, torch.ones(8), EPS),
        lambda: ops.gated_residual_norm_fp8(x, x, torch.ones(8), scale, EPS),
    ):
        with pytest.raises(ValueError, match=r"accepted beside \(2, 5, 8\): \[N\] or \[B, 1, N\]"):
            call()


def test_branches_of_another_shape_are_refused() -> None:
    x, y, scale = torch.randn(2, 8), torch.randn(1, 8), torch.ones(8)
    for call in (
        lambda: ops.residual_norm(x, y, scale, EPS),
        lambda: ops.gated_residual_norm(x, y, scale, scale, EPS),
        lambda: ops.swiglu(x, y),
        lambda: ops.swiglu_fp8(x, y),
    ):
        with pytest.raises(ValueError, match=r"\(1, 8\); accepted: \(2, 8\)"):
            call()
