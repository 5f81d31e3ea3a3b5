"""SANA's transformer in the form that serves: linear attention, cross-attention, convolutional feed-forward.

Everything that depends on time alone is a row of a table (see :mod:`linear_attention_folding`), everything
that depends on the prompt alone is computed with the prompt: keys and values of all blocks come from one
projection of the caption. Tokens stay ``[B, N, dim]``, which is an image with channels last.

Source: Xie et al., arXiv 2410.10629.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinshot_engine.precision import (
    Activation,
    Projection,
    add_center,
    center,
    takes_rows,
)
from twinshot_engine.transformer.linear_attention_config import LinearAttentionConfig
from twinshot_kernels import attention, depthwise_glu, gated_residual, linear_attention, rms_norm

QK_NORM_EPS = 1e-5
CAPTION_NORM_EPS = 1e-5
LAST_NORM_EPS = 1e-6


class SanaModulation(NamedTuple):
    """What a time does to one block, each ``[dim]`` fp32; scales have their 1 added."""

    attention_scale: Tensor
    attention_shift: Tensor
    attention_gate: Tensor
    ffn_scale: Tensor
    ffn_shift: Tensor
    ffn_gate: Tensor


class _SelfAttention(nn.Module):
    def __init__(self, config: LinearAttentionConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.num_attention_heads
        self.to_qkv = Projection(dim, 3 * dim, bias=config.attention_bias)
        self.to_out = Projection(dim, dim, bias=True)
        self.norm_q, self.norm_k = _norms(config)

    def forward(self, h: Activation) -> Tensor:
        """Mix the tokens of ``[B, N, dim]``."""
        query, key, value = self.to_qkv(h).chunk(3, dim=-1)
        query, key = _normed(query, self.norm_q), _normed(key, self.norm_k)
        heads = (torch.unflatten(x, -1, (self.heads, -1)) for x in (query, key, value))
        out: Tensor = self.to_out(linear_attention(*heads).flatten(-2))
        return out


class _CrossAttention(nn.Module):
    def __init__(self, config: LinearAttentionConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.num_cross_attention_heads
        self.to_q = Projection(dim, dim, bias=True)
        self.to_out = Projection(dim, dim, bias=True)
        self.norm_q, _ = _norms(config)

    def forward(self, x: Tensor, key_value: Tensor, lengths: Tensor) -> Tensor:
        """Read from ``key_value`` ``[B, L, 2, dim]``, of which ``lengths`` ``[B]`` are real."""
        query = _normed(self.to_q(x), self.norm_q)
        query, key, value = (
            torch.unflatten(part, -1, (self.heads, -1)) for part in (query, *key_value.unbind(2))
        )
        out: Tensor = self.to_out(attention(query, key, value, key_lengths=lengths).flatten(-2))
        return out


class _FeedForward(nn.Module):
    def __init__(self, config: LinearAttentionConfig) -> None:
        super().__init__()
        self.widen = Projection(config.dim, 2 * config.hidden, bias=True)
        self.taps = nn.Parameter(torch.empty(9, 2 * config.hidden), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(2 * config.hidden), requires_grad=False)
        self.narrow = Projection(config.hidden, config.dim)

    def forward(self, h: Activation, height: int, width: int) -> Tensor:
        """Mix each token of ``[B, height * width, dim]`` with its neighbours."""
        image = torch.unflatten(self.widen(h), 1, (height, width))
        out: Tensor = self.narrow(depthwise_glu(image, self.taps, self.bias).flatten(1, 2))
        return out


class _Block(nn.Module):
    def __init__(self, config: LinearAttentionConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.attn1 = _SelfAttention(config)
        self.attn2 = _CrossAttention(config)
        self.ff = _FeedForward(config)

    def forward(
        self,
        x: Tensor,
        h: Activation,
        caption: tuple[Tensor, Tensor],
        size: tuple[int, int],
        modulation: SanaModulation,
        one: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Refine the stream ``x``, given its norm ``h``; returns the stream and the branch to be added.

        ``one`` is the gain of cross-attention, which time does not gate.
        """
        x = gated_residual(x, self.attn1(h), modulation.attention_gate)
        x, h = add_center(
            x,
            self.attn2(x, *caption),
            one,
            modulation.ffn_scale,
            modulation.ffn_shift,
            self.eps,
            quantized=takes_rows(self.ff.widen),
        )
        return x, self.ff(h, *size)


class LinearAttentionTransformer(nn.Module):
    """SANA, folded."""

    def __init__(self, config: LinearAttentionConfig) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.patch_embed = nn.Linear(config.in_channels, dim)
        self.caption_1 = nn.Linear(config.caption_channels, dim)
        self.caption_2 = nn.Linear(dim, dim)
        self.caption_norm = nn.Parameter(torch.empty(dim), requires_grad=False)
        self.caption_kv = Projection(dim, 2 * dim * config.num_layers, bias=True)
        self.key_norms: nn.Parameter | None = None
        if config.qk_norm is not None:
            self.key_norms = nn.Parameter(torch.empty(config.num_layers, dim), requires_grad=False)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.proj_out = nn.Linear(dim, config.out_channels)

    def read_caption(self, states: Tensor) -> Tensor:
        """Turn a text encoder's ``[1, L, caption_channels]`` into keys and values of all blocks.

        Returns:
            ``[1, L, blocks, 2, dim]``.
        """
        hidden = functional.gelu(self.caption_1(states), approximate="tanh")
        caption = rms_norm(self.caption_2(hidden), self.caption_norm, CAPTION_NORM_EPS)
        packed = torch.unflatten(self.caption_kv(caption), -1, (self.config.num_layers, 2, -1))
        if self.key_norms is not None:
            # One block after another, as each has a scale of its own.
            keys = packed[0, :, :, 0].transpose(0, 1)
            packed[0, :, :, 0] = rms_norm(keys, self.key_norms[:, None], QK_NORM_EPS).transpose(0, 1)
        return packed

    def predict(self, latents: Tensor, key_value: Tensor, lengths: Tensor, modulation: Tensor) -> Tensor:
        """Run the network.

        Args:
            latents: ``[B, C, h, w]`` fp32.
            key_value: ``[B, L, blocks, 2, dim]``, see :meth:`read_caption`.
            lengths: ``[B]`` int32, how many of L are real.
            modulation: a row of the table, see :func:`~linear_attention_folding.fold_times`.

        Returns:
            ``[B, C, h, w]`` in the type of the weights.
        """
        size = latents.shape[-2], latents.shape[-1]
        blocks, last, input_scale = unpack_modulation(modulation)
        tokens = (latents * input_scale).to(self.proj_out.weight.dtype).flatten(2).transpose(1, 2)
        x = self.patch_embed(tokens)
        one = torch.ones_like(last[0])
        h = center(
            x, *blocks[0][:2], self.config.norm_eps, quantized=takes_rows(self._blocks[0].attn1.to_qkv)
        )
        ahead = [*((block[0], block[1]) for block in blocks[1:]), last]
        for index, (block, modulated) in enumerate(zip(self._blocks, blocks, strict=True)):
            x, branch = block(x, h, (key_value[:, :, index], lengths), size, modulated, one)
            after = self._blocks[index + 1 : index + 2]
            quantized = any(takes_rows(each.attn1.to_qkv) for each in after)
            eps = self.config.norm_eps if after else LAST_NORM_EPS
            x, h = add_center(x, branch, modulated.ffn_gate, *ahead[index], eps, quantized=quantized)
        return torch.unflatten(self.proj_out(h).transpose(1, 2), 2, size)

    @property
    def _blocks(self) -> Sequence[_Block]:
        return cast("Sequence[_Block]", self.blocks)


def unpack_modulation(packed: Tensor) -> tuple[list[SanaModulation], tuple[Tensor, Tensor], Tensor]:
    """Name the rows of ``[V, dim]``, as views: blocks, scale and shift of the last norm, and input scale."""
    rows = packed.unbind()
    blocks = [SanaModulation(*rows[start : start + 6]) for start in range(0, len(rows) - 3, 6)]
    return blocks, (rows[-3], rows[-2]), rows[-1][0]


def _norms(config: LinearAttentionConfig) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    if config.qk_norm is None:
        return None, None
    scales = (nn.Parameter(torch.empty(config.dim), requires_grad=False) for _ in range(2))
    return next(scales), next(scales)


def _normed(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else rms_norm(x, scale, QK_NORM_EPS)
