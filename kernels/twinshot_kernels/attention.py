"""Scaled dot-product attention without a mask: ``softmax(q k^T / sqrt(D)) v``.

The one place where an attention kernel is chosen. Every row of a batch attends to all of its tokens
(padding is a learned token), so no mask exists.
"""

from torch import Tensor
from torch.nn import functional


def attention_reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend by the formula, in fp32, keeping the whole score matrix; see :func:`attention`."""
    q, k, v = (x.float().transpose(1, 2) for x in (query, key, value))
    scores = q @ k.transpose(-2, -1) * query.shape[-1] ** -0.5
    mixed: Tensor = scores.softmax(-1) @ v
    return mixed.transpose(1, 2).to(query.dtype)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Let every query attend to every key of its row.

    Args:
        query: ``[B, N, H, D]``.
        key: ``[B, M, H, D]``.
        value: ``[B, M, H, D]``.

    Returns:
        ``[B, N, H, D]`` in the type of ``query``.
    """
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
