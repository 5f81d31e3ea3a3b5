"""SiLU inside kernels, exact and by one instruction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from twinshot_kernels import _activation as activation
from twinshot_kernels._triton import jit, tl

SILU = activation.silu
SIZE = 1024


@jit
def apply(x: tl.tensor, out: tl.tensor, size: tl.constexpr, approximate: tl.constexpr) -> None:
    place = tl.arange(0, size)
    tl.store(out + place, SILU(tl.load(x + place), approximate))


@pytest.fixture
def x(implementation: str) -> Tensor:
    """Values at which SiLU bends and at which it does not, and both ends."""
    values = torch.cat((torch.linspace(-12, 12, SIZE - 2), torch.tensor([-80.0, 80.0])))
    return values.to("cuda" if implementation == "cuda" else "cpu")


def test_it_is_exact_to_fp32(implementation: str, x: Tensor) -> None:
    if implementation == "reference":
        pytest.skip("the reference runs no kernel")
    out = torch.empty_like(x)
    apply[(1,)](x, out, SIZE, False)
    torch.testing.assert_close(out.double(), x.double() * x.double().sigmoid(), rtol=1e-6, atol=1e-37)


@pytest.mark.gpu
def test_one_instruction_is_off_by_what_the_documentation_says() -> None:
    x = torch.linspace(-40, 40, SIZE, device="cuda")
    out = torch.empty_like(x)
    apply[(1,)](x, out, SIZE, True)
    error = (out.double() - x.double() * x.double().sigmoid()).abs()
    assert (error <= x.double().abs() * 2.0**-12 * 1.01 + 1e-7).all()


def test_only_16_bit_on_a_gpu_are_approximated() -> None:
    assert not activation.approximates(torch.zeros(1, dtype=torch.bfloat16))


@pytest.mark.gpu
def test_fp32_on_a_gpu_stays_exact() -> None:
    sixteen, wide = (torch.zeros(1, dtype=dtype, device="cuda") for dtype in (torch.bfloat16, torch.float32))
    assert activation.approximates(sixteen)
    assert not activation.approximates(wide)
