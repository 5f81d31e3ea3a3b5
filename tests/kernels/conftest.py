"""Runs every case as reference on the CPU, as kernel in Triton's interpreter, and as kernel on CUDA."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

LAUNCHES = [
    ("bias_silu", "_bias_silu", "_launch"),
    ("capped_attention", "_capped_attention", "_launch"),
    ("depthwise_glu", "_depthwise_glu", "_launch"),
    ("depthwise_mix", "_depthwise_mix", "_launch"),
    ("embed_rows", "_embed_rows", "_launch"),
    ("gated_residual", "_gated_residual", "_launch"),
    ("gated_residual_layer_norm", "_gated_residual_layer_norm", "_launch"),
    ("gated_residual_layer_norm", "_gated_residual_layer_norm_fp8", "_launch_fp8"),
    ("gated_residual_norm", "_gated_residual_norm", "_launch"),
    ("gated_residual_norm", "_gated_residual_norm_fp8", "_launch_fp8"),
    ("geglu", "_geglu", "_launch"),
    ("geglu", "_geglu_fp8", "_launch_fp8"),
    ("gelu_fp8", "_gelu_fp8", "_launch_fp8"),
    ("group_norm_silu", "_group_norm_silu", "_launch"),
    ("group_norm_silu_taps", "_group_norm_silu_taps", "_launch"),
    ("group_statistics", "_group_statistics", "launch_statistics"),
    ("group_statistics", "_residual_statistics", "_launch_residual"),
    ("joint_norm_rotary", "_joint_norm_rotary", "_launch"),
    ("layer_norm", "_layer_norm", "_launch"),
    ("layer_norm", "_layer_norm_fp8", "_launch_fp8"),
    ("linear_attention", "_linear_attention", "_launch"),
    ("pixel_norm", "_pixel_norm", "_launch"),
    ("pixel_norm", "_pixel_norm_taps", "_launch_taps"),
    ("qk_norm_rotary", "_qk_norm_rotary", "_launch"),
    ("quantize_pixels", "_quantize_pixels", "_launch"),
    ("quantize_rows", "_quantize_rows", "_launch"),
    ("quantize_taps", "_quantize_taps", "_launch"),
    ("residual_norm", "_residual_norm", "_launch"),
    ("residual_norm", "_residual_norm_fp8", "_launch_fp8"),
    ("rms_norm", "_rms_norm", "_launch"),
    ("rms_norm", "_rms_norm_fp8", "_launch_fp8"),
    ("rms_norm_silu", "_residual_rms_norm_silu", "_launch_residual"),
    ("rms_norm_silu", "_residual_sum", "_launch_sum"),
    ("rms_norm_silu", "_rms_norm_silu", "_launch"),
    ("swiglu", "_swiglu", "_launch"),
    ("swiglu", "_swiglu_fp8", "_launch_fp8"),
    ("upsample_shortcut", "_upsample_shortcut", "_launch"),
    ("wide_attention", "_wide_attention", "_launch"),
]


@pytest.fixture(params=["reference", "interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What public functions run. For the interpreter, they launch their kernels on CPU tensors."""
    torch.manual_seed(0)
    if request.param == "interpreter":
        pytest.importorskip("triton")
        if torch.cuda.is_available():
            pytest.skip("with a GPU, kernels are compiled for it")
        for name, operator, launch in LAUNCHES:
            module = importlib.import_module(f"twinshot_kernels.{name}")
            monkeypatch.setattr(module, operator, getattr(module, launch))
            if launch == "_launch_fp8" or name == "quantize_rows":
                monkeypatch.setattr(module, "empty_fp8", _empty_before_rounding)
    return request.param


@pytest.fixture
def device(implementation: str) -> str:
    """Where tensors of a case are made."""
    return "cuda" if implementation == "cuda" else "cpu"


def _empty_before_rounding(x: Tensor) -> tuple[Tensor, Tensor]:
    # The interpreter loses carries when it rounds to fp8 (127.998 becomes 64), so there it stores fp32.
    return torch.empty(x.shape), torch.empty((*x.shape[:-1], 1))


@pytest.fixture
def rows(device: str) -> Callable[..., Tensor]:
    """Makes random rows: `whole`, as a `slice` of wider rows, or `spread` with gaps between elements."""

    def make(layout: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        *outer, width = shape
        if layout == "whole":
            return torch.randn(shape).to(device, dtype)
        if layout == "slice":
            return torch.randn(*outer, 2 * width + 8).to(device, dtype)[..., 8 : 8 + width]
        return torch.randn(*outer, 2 * width).to(device, dtype)[..., ::2]

    return make


@pytest.fixture
def agree(implementation: str) -> Callable[[Tensor, Tensor, Tensor], None]:
    """Asserts that a result is at most twice as far from the exact one as plain torch in its type is."""

    def check(actual: Tensor, exact: Tensor, plain: Tensor) -> None:
        assert actual.dtype == plain.dtype
        # Rounding the result alone may cost half of eps; the interpreter cuts bf16 off instead.
        floor = max(torch.finfo(plain.dtype).eps * (1 if implementation == "interpreter" else 0.5), 1e-6)
        largest = exact.abs().max()
        error, usual = ((x.double() - exact).abs().max() / largest for x in (actual, plain))
        assert error <= 2 * usual + floor, f"error {error:.2e}, plain torch {usual:.2e}"

    return check


@pytest.fixture
def agree_fp8(implementation: str) -> Callable[[Tensor, Tensor, Tensor], None]:
    """Asserts that quantised rows times their scales are the exact rows, to the rounding of fp8."""

    def check(values: Tensor, scale: Tensor, exact: Tensor) -> None:
        assert values.dtype == (torch.float32 if implementation == "interpreter" else torch.float8_e4m3fn)
        amax = exact.abs().amax(-1, keepdim=True)
        torch.testing.assert_close(scale.double(), amax / 448, rtol=1e-5, atol=1e-14)
        # E4M3 keeps 3 bits after the first, and no less than 2^-9: half of the last one may be lost.
        half_step = torch.clamp((exact / scale).abs() / 16, min=2.0**-10)
        error = (values.to(torch.float8_e4m3fn).double() - exact / scale).abs() / half_step
        assert error.max() <= 1.001

    return check
