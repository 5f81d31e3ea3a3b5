"""Linear layer and GELU: ``y = gelu(x W^T + bias)`` with the tanh form of GELU.

Apart, the activation reads and writes the widest tensor of a block again: 4 bytes an element. cuBLASLt
applies just this form of it to sums that are still in registers. So there is no kernel of ours here: on CUDA
in 16 bit the product's epilogue does it, anywhere else plain torch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from twinshot_kernels._dispatch import needs_gradient


def linear_gelu_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Multiply, then activate; see :func:`linear_gelu`."""
    return functional.gelu(functional.linear(x, weight, bias), approximate="tanh")


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a linear layer and the tanh form of GELU.

    Args:
        x: ``[..., K]``.
        weight: ``[O, K]``, of the same type.
        bias: ``[O]``, likewise.

    Returns:
        ``[..., O]`` in the type of ``x``.

    Source: Hendrycks and Gimpel, arXiv 1606.08415.
    """
    half = x.dtype in (torch.bfloat16, torch.float16)
    # On the CPU torch's operator computes the other form, by the error function.
    if not (x.is_cuda and half) or needs_gradient(x, weight, bias):
        return linear_gelu_reference(x, weight, bias)
    product = torch._addmm_activation(  # noqa: SLF001 -- there is no public form
        bias, x.reshape(-1, x.shape[-1]), weight.t(), use_gelu=True
    )
    return product.view(*x.shape[:-1], weight.shape[0])
