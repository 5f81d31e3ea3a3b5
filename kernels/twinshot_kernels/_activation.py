"""SiLU inside kernels: exact to fp32, or with one instruction of the special function unit instead of two.

``silu(x) = h + h tanh(h)`` with ``h = x / 2``. NVIDIA's ``tanh.approx.f32`` is off by at most 2^-11, so the
result by at most ``|x| 2^-12``: an eighth of what rounding to bf16 may cost a value as large as ``x``, but
more than that for a negative ``x``, whose result is near zero. So only a kernel that is bound by its
arithmetic takes this form, and only for 16-bit tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twinshot_kernels._triton import jit, tl


def approximates(x: Tensor) -> bool:
    """Whether activations of ``x`` may be approximated: of 16 bit, on a GPU that has the instruction."""
    return x.is_cuda and torch.version.hip is None and x.element_size() == 2


@jit
def silu(x: tl.tensor, APPROXIMATE: tl.constexpr) -> tl.tensor:
    """Activate fp32 values."""
    if APPROXIMATE:
        half = 0.5 * x
        bent = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1
        )
        y = half + half * bent
    else:
        y = x / (1.0 + tl.exp(-x))
    return y
