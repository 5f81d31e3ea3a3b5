"""Attention whose scores have a bias: ``softmax(q k^T * scale + bias) v``.

T5 tells positions by it, and does not scale its scores. Flash kernels take no such bias, so torch's SDPA
chooses between those of its own that do.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def biased_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float
) -> Tensor:
    """Attend by the formula, in fp32, keeping the whole score matrix; see :func:`biased_attention`."""
    q, k, v = (x.float().transpose(1, 2) for x in (query, key, value))
    mixed = (q @ k.mT * scale + bias).softmax(-1) @ v
    return mixed.transpose(1, 2).to(query.dtype)


def biased_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Let every query attend to every key of its row.

    Args:
        query: ``[B, N, H, D]``.
        key: ``[B, M, H, D]``.
        value: likewise.
        bias: ``[1 or B, H, N, M]`` in the type of ``query``, added to the scores.
        scale: of the scores before that.

    Returns:
        ``[B, N, H, D]`` in the type of ``query``.

    Source: Raffel et al., arXiv 1910.10683 (relative positions).
    """
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).transpose(1, 2)
