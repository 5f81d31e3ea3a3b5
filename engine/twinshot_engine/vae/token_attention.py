"""Single-head attention over an image with two projections instead of four: tokens are their own keys.

Scores are ``(x Q + q)(x K + k)^T``. The key's bias moves all scores of a query alike and falls out of the
softmax; the rest is ``(x Q K^T + q K^T) x^T``, which needs one projection of ``x``. Mixing tokens and
projecting them can change places, so the value's and the output's projections are one behind attention; as
rows of weights sum to 1, the value's bias just passes through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinshot_engine.vae.constants import constant
from twinshot_kernels import attention


class Linear(NamedTuple):
    """Weight ``[out, in]`` and bias ``[out]`` of a projection."""

    weight: Tensor
    bias: Tensor


class TokenAttention(nn.Module):
    """The two projections with attention between them; :attr:`bias` is left to whoever adds the result."""

    def __init__(self, layers: Sequence[Linear], dtype: torch.dtype) -> None:
        """Fold queries', keys', values' and the output's projections."""
        super().__init__()
        (to_q, q), (to_k, _), (to_v, v), (mix, last) = (
            (layer.weight.detach().float(), layer.bias.detach().float()) for layer in layers
        )
        self.query = constant(to_k.T @ to_q, dtype)
        self.query_bias = constant(to_k.T @ q, dtype)
        self.out = constant(mix @ to_v, dtype)
        self.bias = constant(last + mix @ v, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions of ``[B, C, H, W]``, channels last."""
        batch, channels, height, width = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(batch, height * width, 1, channels)
        query = functional.linear(tokens, self.query, self.query_bias)
        mixed = functional.linear(attention(query, tokens, tokens), self.out)
        return mixed.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
