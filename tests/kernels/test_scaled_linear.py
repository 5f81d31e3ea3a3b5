"""The fp8 product."""

from __future__ import annotations

import pytest
import torch

import twinshot_kernels as ops

PLACES = pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@PLACES
@pytest.mark.parametrize("outer", [(1,), (2, 3), (1, 129)])
def test_scaled_linear_is_the_product_of_what_was_quantised(place: str, outer: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(*outer, 64).to(place), torch.randn(48, 64).to(place)
    x8, x_scale = ops.quantize_rows(x)
    weight8, weight_scale = ops.quantize_rows(weight)
    result = ops.scaled_linear(x8, x_scale, weight8, weight_scale.squeeze(-1))
    assert result.shape == (*outer, 48)
    assert result.dtype == torch.bfloat16
    exact = (x8.double() * x_scale.double()) @ (weight8.double() * weight_scale.double()).t()
    # Rounding to bf16, and the fast accumulation of fp8 matrix units, cost half a percent.
    assert (result.double() - exact).abs().max() <= 5e-3 * exact.abs().max()
    room = torch.empty_like(result)
    again = ops.scaled_linear(x8, x_scale, weight8, weight_scale.squeeze(-1), out=room)
    assert torch.equal(room, result)
    assert again.data_ptr() == room.data_ptr()
    unquantised = x.double() @ weight.double().t()
    assert (result.double() - unquantised).norm() <= 0.05 * unquantised.norm()


def test_scaled_linear_in_fp32_on_the_cpu() -> None:
    x8, x_scale = ops.quantize_rows(torch.randn(3, 7))
    weight8, weight_scale = ops.quantize_rows(torch.randn(5, 7))
    result = ops.scaled_linear(x8, x_scale, weight8, weight_scale.squeeze(-1), torch.float32)
    exact = (x8.double() * x_scale) @ (weight8.double() * weight_scale).t()
    torch.testing.assert_close(result.double(), exact)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("width", "outputs", "dtype"),
    [(40, 48, torch.bfloat16), (48, 40, torch.bfloat16), (48, 48, torch.float32)],
)
def test_what_the_matrix_units_cannot_do_is_refused(width: int, outputs: int, dtype: torch.dtype) -> None:
    x8, x_scale = ops.quantize_rows(torch.randn(3, width, device="cuda"))
    weight8, weight_scale = ops.quantize_rows(torch.randn(outputs, width, device="cuda"))
    with pytest.raises(ValueError, match=f"{width} -> {outputs} fp8 layer giving {dtype}"):
        ops.scaled_linear(x8, x_scale, weight8, weight_scale.squeeze(-1), dtype)


@PLACES
def test_scaled_linear_adds_a_bias(place: str) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 64).to(place), torch.randn(48, 64).to(place)
    bias = 30 * torch.randn(48).to(place, torch.bfloat16)
    x8, x_scale = ops.quantize_rows(x)
    weight8, weight_scale = ops.quantize_rows(weight)
    result = ops.scaled_linear(x8, x_scale, weight8, weight_scale.squeeze(-1), bias=bias)
    exact = (x8.double() * x_scale) @ (weight8.double() * weight_scale).t() + bias.double()
    assert (result.double() - exact).abs().max() <= 5e-3 * exact.abs().max()
