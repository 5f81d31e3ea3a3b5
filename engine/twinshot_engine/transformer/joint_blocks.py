"""The blocks of a joint transformer in the form that serves.

Image and text have a stream each, with weights of their own, and attend together. A block takes each stream
``x`` and the normalised input ``h`` of its attention, and returns the next of both, so that adding to a
stream and normalising it are one operation. Some blocks let the image attend to itself a second time.
Source: Esser et al., arXiv 2403.03206; the layout is diffusers' ``JointTransformerBlock``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from twinshot_engine.precision import (
    Activation,
    GeluMLP,
    Projection,
    QuantizedRows,
    gate_add_modulate,
    modulate,
    takes_rows,
)
from twinshot_engine.transformer.joint_config import JointConfig
from twinshot_engine.transformer.joint_modulation import StreamModulation
from twinshot_kernels import attention, joint_norm_rotary, qk_norm_rotary

EPS = 1e-6
"""Of all norms."""


class Stream(NamedTuple):
    """A stream ``[B, N, dim]`` and its normalised form, which the next attention reads."""

    x: Tensor
    h: Activation

    def normed(self) -> Tensor:
        """What is normalised, as values that nobody quantised.

        Raises:
            TypeError: it was quantised.
        """
        if isinstance(self.h, QuantizedRows):
            raise TypeError("the last norm's output was quantised, though no fp8 projection reads it")
        return self.h


class Still(NamedTuple):
    """Rotary tables ``[N, head_dim / 2]`` that turn nothing: positions are in the embedding already."""

    cos: Tensor
    sin: Tensor

    @staticmethod
    def make(tokens: int, head_dim: int, device: torch.device) -> Still:
        """Make the table of ``tokens`` tokens."""
        shape = tokens, head_dim // 2
        return Still(torch.ones(shape, device=device), torch.zeros(shape, device=device))

    def first(self, tokens: int) -> Still:
        """Take the rows of the first tokens."""
        return Still(self.cos[:tokens], self.sin[:tokens])


class JointAttention(nn.Module):
    """Attention of image and text tokens to all of them."""

    def __init__(self, config: JointConfig, *, last: bool) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.num_attention_heads
        self.to_qkv = Projection(dim, 3 * dim, bias=True)
        self.add_qkv = Projection(dim, 3 * dim, bias=True)
        self.to_out = Projection(dim, dim, bias=True)
        self.to_add_out = None if last else Projection(dim, dim, bias=True)
        # Of image, then text: the scales of queries and of keys.
        self.scales = nn.Parameter(torch.empty(4 * config.attention_head_dim))

    def forward(self, image: Activation, text: Activation, room: Tensor, still: Still) -> Tensor:
        """Mix the tokens of both streams.

        Args:
            image: ``[B, N, dim]``.
            text: ``[B, M, dim]``.
            room: ``[B, N + M, 3 * dim]`` for the projections of both.
            still: of all tokens.

        Returns:
            ``[B, N + M, dim]``, not projected yet.
        """
        split = room.shape[1] - count_tokens(text)
        self.add_qkv.project_into(room[:, split:], text)
        self.to_qkv.project_into(room[:, :split], image)
        scales = self.scales.view(2, 2, -1)
        query, key, value = joint_norm_rotary(room, scales, *still, EPS, split=split, heads=self.heads)
        return attention(query, key, value).flatten(-2)


class SelfAttention(nn.Module):
    """Attention of image tokens to image tokens."""

    def __init__(self, config: JointConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.num_attention_heads
        self.to_qkv = Projection(dim, 3 * dim, bias=True)
        self.to_out = Projection(dim, dim, bias=True)
        self.norm_q = nn.Parameter(torch.empty(config.attention_head_dim))
        self.norm_k = nn.Parameter(torch.empty(config.attention_head_dim))

    def forward(self, image: Activation, still: Still) -> Tensor:
        """Mix the tokens ``[B, N, dim]``."""
        query, key, value = qk_norm_rotary(
            self.to_qkv(image),
            self.norm_q,
            self.norm_k,
            *still,
            EPS,
            heads=self.heads,
            kv_heads=self.heads,
            interleaved=True,
        )
        out: Tensor = self.to_out(attention(query, key, value).flatten(-2))
        return out


class JointBlock(nn.Module):
    """Joint attention and a feed-forward layer a stream.

    Args:
        config: of the transformer.
        dual: whether the image attends to itself as well.
        last: whether the text stream ends here.
    """

    def __init__(self, config: JointConfig, *, dual: bool, last: bool) -> None:
        super().__init__()
        self.attn = JointAttention(config, last=last)
        self.attn2 = SelfAttention(config) if dual else None
        self.ff = GeluMLP(config.dim, 4 * config.dim)
        self.ff_context = None if last else GeluMLP(config.dim, 4 * config.dim)

    def close_image(
        self,
        x: Tensor,
        mixed: Tensor,
        still: Still,
        own: StreamModulation,
        ahead: StreamModulation,
        *,
        rows_ahead: bool,
    ) -> Stream:
        """Take what joint attention mixed for the image through the rest of the block.

        Args:
            x: the stream ``[B, N, dim]``.
            mixed: likewise, from :attr:`attn`.
            still: of the image's tokens.
            own: this block's modulation of the image.
            ahead: whose scale and shift the next attention's input is normalised by.
            rows_ahead: whether that reads quantised rows.
        """
        branch, gate = self.attn.to_out(mixed), own.gate
        if self.attn2 is not None:
            quantized = takes_rows(self.attn2.to_qkv)
            h = modulate(x, own.scale2, own.shift2, EPS, quantized=quantized)
            x = torch.addcmul(x, gate, branch)
            branch, gate = self.attn2(h, still), own.gate2
        return _feed(self.ff, x, branch, gate, own, ahead, rows_ahead=rows_ahead)

    def close_text(
        self, text: Stream, mixed: Tensor, own: StreamModulation, ahead: StreamModulation, *, rows_ahead: bool
    ) -> Stream:
        """Do likewise for the text; behind the last block it is what it was, as nobody reads it."""
        if self.ff_context is None or self.attn.to_add_out is None:
            return text
        branch = self.attn.to_add_out(mixed)
        return _feed(self.ff_context, text.x, branch, own.gate, own, ahead, rows_ahead=rows_ahead)


def _feed(
    layer: GeluMLP,
    x: Tensor,
    branch: Tensor,
    gate: Tensor,
    own: StreamModulation,
    ahead: StreamModulation,
    *,
    rows_ahead: bool,
) -> Stream:
    """Add what attention made, then what the feed-forward layer makes of the sum."""
    quantized = takes_rows(layer.up)
    x, h = gate_add_modulate(x, branch, gate, own.mlp_scale, own.mlp_shift, EPS, quantized=quantized)
    return Stream(
        *gate_add_modulate(x, layer(h), own.mlp_gate, ahead.scale, ahead.shift, EPS, quantized=rows_ahead)
    )


def count_tokens(h: Activation) -> int:
    """Count the tokens of ``[B, N, dim]``."""
    return (h.values if isinstance(h, QuantizedRows) else h).shape[1]
