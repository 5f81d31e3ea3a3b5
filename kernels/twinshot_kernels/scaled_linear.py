"""Product of two rowwise-quantised fp8 matrices: ``y = (x8 w8^T) * x_scale * weight_scale``.

E4M3 products run at twice the rate of bf16 ones and read half the weights. Scales per row of ``x`` and per
output channel are constant along the sum, so they apply after it. torch's own kernel (cuBLAS or CUTLASS)
does the product; on the CPU the operands are widened.

Measured on an H100: 1,339 to 1,445 TFLOP/s at Z-Image's three shapes (4224 rows), .90 to .97 of a large
product.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scaled_linear_reference(
    x8: Tensor,
    x_scale: Tensor,
    weight8: Tensor,
    weight_scale: Tensor,
    out_dtype: torch.dtype = torch.bfloat16,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiply in fp32 after widening; see :func:`scaled_linear`."""
    product = x8.float() @ weight8.float().t() * x_scale * weight_scale
    return (product if bias is None else product + bias.float()).to(out_dtype)


def scaled_linear(
    x8: Tensor,
    x_scale: Tensor,
    weight8: Tensor,
    weight_scale: Tensor,
    out_dtype: torch.dtype = torch.bfloat16,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Apply a linear layer whose operands are fp8.

    Args:
        x8: ``[..., K]`` E4M3 activations, as :func:`twinshot_kernels.quantize_rows` makes them.
        x_scale: ``[..., 1]`` fp32.
        weight8: ``[O, K]`` E4M3.
        weight_scale: ``[O]`` fp32.
        out_dtype: type of the result; on CUDA bf16 only.
        bias: ``[O]`` in the type of the result.
        out: where to put the result: of its shape and type, contiguous.

    Returns:
        ``[..., O]``.

    Raises:
        ValueError: on CUDA, if K or O is no multiple of 16 or ``out_dtype`` is not bf16.
    """
    if not x8.is_cuda:
        result = scaled_linear_reference(x8, x_scale, weight8, weight_scale, out_dtype, bias)
        return result if out is None else out.copy_(result)
    outputs, width = weight8.shape
    if width % 16 or outputs % 16 or out_dtype != torch.bfloat16:
        raise ValueError(
            f"A {width} -> {outputs} fp8 layer giving {out_dtype} has no CUDA kernel; "
            "accepted: multiples of 16, giving torch.bfloat16."
        )
    product = torch._scaled_mm(  # noqa: SLF001 -- the public form is newer than our oldest torch
        x8.reshape(-1, width),
        weight8.t(),
        scale_a=x_scale.reshape(-1, 1),
        scale_b=weight_scale.reshape(1, -1),
        bias=bias,
        out_dtype=out_dtype,
        use_fast_accum=True,
        out=None if out is None else out.view(-1, outputs),
    )
    return product.view(*x8.shape[:-1], outputs)
