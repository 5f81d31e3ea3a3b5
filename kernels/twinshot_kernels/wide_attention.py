"""Attention of one wide head (the middle block of an image decoder): ``softmax(q k^T / sqrt(D)) v``.

Flash kernels stop at D = 256; here D is 384 or 512 and N is 16384 at 1024x1024, so that a score matrix
would take 537 MB in bf16. It must do ``4 N^2 D`` operations (0.55 TFLOP at D = 512).

Measured: see benchmarks/results (kernels).
"""

from __future__ import annotations

from torch import Tensor

from twinshot_kernels._dispatch import needs_gradient, register

MAX_HEAD_DIM = 512


def wide_attention_reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend by the formula, in fp32, keeping the whole score matrix; see :func:`wide_attention`."""
    q, k, v = (x.float().squeeze(2) for x in (query, key, value))
    scores = q @ k.transpose(-2, -1) * query.shape[-1] ** -0.5
    mixed: Tensor = scores.softmax(-1) @ v
    return mixed.unsqueeze(2).to(query.dtype).contiguous()


_wide_attention = register("wide_attention", wide_attention_reference, wide_attention_reference)


def wide_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Let every query attend to every key of its image, with one head wider than flash kernels take.

    Args:
        query: ``[B, N, 1, D]``, D a multiple of 64 from 320 to 512.
        key: ``[B, M, 1, D]``.
        value: ``[B, M, 1, D]``.

    Returns:
        ``[B, N, 1, D]`` in the type of ``query``; sums and softmax are fp32.

    Raises:
        ValueError: if the head count or D is another.
    """
    heads, width = query.shape[2:]
    if heads != 1 or not 256 < width <= MAX_HEAD_DIM or width % 64:
        raise ValueError(
            f"{heads} heads of {width}; accepted: one head of a multiple of 64 from 320 to {MAX_HEAD_DIM}."
        )
    if needs_gradient(query, key, value):
        return wide_attention_reference(query, key, value)
    result: Tensor = _wide_attention(query, key, value)
    return result
