"""The layers of a single-stream transformer, under diffusers' parameter names.

Each layer has two forms of the same computation. The *open* form has one weight a projection, norms and
adaLN: it is trained and read from checkpoints. The *folded* form serves: projections that read the same
input are packed into one, and a modulated block is handed a :class:`BlockModulation` in place of its norms
and adaLN.

A block takes the stream ``x`` and the normalised input ``h`` of its attention, and returns the next of both,
so that adding to the stream and normalising it are one operation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinshot_engine.precision import (
    Activation,
    Projection,
    gate,
    gate_add_normalize,
    normalize,
    takes_rows,
)
from twinshot_engine.transformer.config import CHANNEL_MULTIPLE, SingleStreamConfig
from twinshot_engine.transformer.modulation import BlockModulation
from twinshot_engine.transformer.positions import RotaryTable
from twinshot_kernels import attention, qk_norm_rotary, rms_norm, rotary, swiglu

QK_NORM_EPS = 1e-5
FINAL_NORM_EPS = 1e-6


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis with a learned scale."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[..., channels]``."""
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Self-attention with normalised queries and keys and rotary positions."""

    def __init__(self, config: SingleStreamConfig, *, folded: bool) -> None:
        super().__init__()
        dim = config.dim
        self.heads, self.head_dim, self.folded = config.n_heads, config.head_dim, folded
        if folded:
            self.to_qkv = Projection(dim, 3 * dim)
        else:
            self.to_q = nn.Linear(dim, dim, bias=False)
            self.to_k = nn.Linear(dim, dim, bias=False)
            self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.ModuleList([Projection(dim, dim) if folded else nn.Linear(dim, dim, bias=False)])
        self.norm_q = RMSNorm(config.head_dim, QK_NORM_EPS) if config.qk_norm else None
        self.norm_k = RMSNorm(config.head_dim, QK_NORM_EPS) if config.qk_norm else None

    @property
    def takes_rows(self) -> bool:
        """Whether :meth:`forward` should be handed quantised rows."""
        return self.folded and takes_rows(self.to_qkv)

    def forward(self, x: Activation, table: RotaryTable) -> Tensor:
        """Mix the tokens of ``x`` ``[B, N, dim]``."""
        query, key, value = self._project_packed(x, table) if self.folded else self._project(x, table)
        out: Tensor = self.to_out[0](attention(query, key, value).flatten(-2))
        return out

    def _project_packed(self, x: Activation, table: RotaryTable) -> tuple[Tensor, Tensor, Tensor]:
        q_scale, k_scale = (None if norm is None else norm.weight for norm in (self.norm_q, self.norm_k))
        return qk_norm_rotary(
            self.to_qkv(x),
            q_scale,
            k_scale,
            table.cos,
            table.sin,
            QK_NORM_EPS,
            heads=self.heads,
            kv_heads=self.heads,
            interleaved=True,
        )

    def _project(self, x: Activation, table: RotaryTable) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (
            torch.unflatten(layer(x), -1, (-1, self.head_dim)) for layer in (self.to_q, self.to_k, self.to_v)
        )
        query = query if self.norm_q is None else self.norm_q(query)
        key = key if self.norm_k is None else self.norm_k(key)
        return rotary(query, table.cos, table.sin), rotary(key, table.cos, table.sin), value


class FeedForward(nn.Module):
    """Gated feed-forward layer of width 8/3 dim; the folded form pads that width with zeros."""

    def __init__(self, config: SingleStreamConfig, *, folded: bool) -> None:
        super().__init__()
        dim, hidden = config.dim, config.ffn_channels
        self.folded = folded
        if folded:
            hidden += -hidden % CHANNEL_MULTIPLE
            self.w13 = Projection(dim, 2 * hidden)
            self.w2: nn.Module = Projection(hidden, dim)
        else:
            self.w1 = nn.Linear(dim, hidden, bias=False)
            self.w2 = nn.Linear(hidden, dim, bias=False)
            self.w3 = nn.Linear(dim, hidden, bias=False)

    @property
    def takes_rows(self) -> bool:
        """Whether :meth:`forward` should be handed quantised rows."""
        return self.folded and takes_rows(self.w13)

    def forward(self, x: Activation) -> Tensor:
        """Transform each token of ``[B, N, dim]``."""
        if self.folded:
            hidden: Activation = gate(self.w13(x), quantized=takes_rows(self.w2))
        else:
            hidden = swiglu(self.w1(x), self.w3(x))
        out: Tensor = self.w2(hidden)
        return out


class Block(nn.Module):
    """Attention and a feed-forward layer, each between an input and an output norm."""

    def __init__(self, config: SingleStreamConfig, *, folded: bool) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.attention = Attention(config, folded=folded)
        self.feed_forward = FeedForward(config, folded=folded)

    def open(self, x: Tensor, modulation: BlockModulation) -> Activation:
        """Normalise the stream ``[B, N, dim]`` for this block, where no block before it did."""
        return normalize(x, modulation.attention_scale, self.eps, quantized=self.attention.takes_rows)

    def forward(
        self,
        x: Tensor,
        h: Activation,
        table: RotaryTable,
        modulation: BlockModulation,
        scale_ahead: Tensor,
        *,
        rows_ahead: bool = False,
    ) -> tuple[Tensor, Activation]:
        """Refine tokens.

        Args:
            x: the stream ``[B, N, dim]``.
            h: its normalised form, from :meth:`open` or the block before.
            table: rotary table of the N tokens.
            modulation: this block's.
            scale_ahead: what the next block's input is scaled by.
            rows_ahead: whether the next block reads quantised rows.

        Returns:
            The new stream, and the next block's ``h``.
        """
        x, h = gate_add_normalize(
            x,
            self.attention(h, table),
            modulation.attention_gain,
            modulation.ffn_scale,
            self.eps,
            quantized=self.feed_forward.takes_rows,
        )
        return gate_add_normalize(
            x, self.feed_forward(h), modulation.ffn_gain, scale_ahead, self.eps, quantized=rows_ahead
        )


class NormedBlock(Block):
    """A block with its four norms' scales."""

    def __init__(self, config: SingleStreamConfig, *, folded: bool) -> None:
        super().__init__(config, folded=folded)
        self.attention_norm1 = RMSNorm(config.dim, config.norm_eps)
        self.attention_norm2 = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm1 = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm2 = RMSNorm(config.dim, config.norm_eps)


class CaptionBlock(NormedBlock):
    """A block that does not know the time; it refines the caption."""

    def modulation(self) -> BlockModulation:
        """The norms' own scales."""
        norms = (self.attention_norm1, self.attention_norm2, self.ffn_norm1, self.ffn_norm2)
        return BlockModulation(*(norm.weight for norm in norms))


class ModulatedBlock(NormedBlock):
    """A block scaled and gated by time, in its open form."""

    def __init__(self, config: SingleStreamConfig) -> None:
        super().__init__(config, folded=False)
        self.adaLN_modulation = nn.Sequential(nn.Linear(config.time_channels, 4 * config.dim))

    def modulate(self, time_embedding: Tensor) -> BlockModulation:
        """Turn ``[B, time_channels]`` fp32 into this block's vectors, ``[B, 1, dim]`` each."""
        raw = _linear_fp32(time_embedding, self.adaLN_modulation[0]).unsqueeze(1)
        attention_scale, attention_gate, ffn_scale, ffn_gate = raw.chunk(4, dim=-1)
        return BlockModulation(
            self.attention_norm1.weight * (1 + attention_scale),
            self.attention_norm2.weight * attention_gate.tanh(),
            self.ffn_norm1.weight * (1 + ffn_scale),
            self.ffn_norm2.weight * ffn_gate.tanh(),
        )


class FinalLayer(nn.Module):
    """From tokens to patches, scaled by time."""

    def __init__(self, config: SingleStreamConfig, *, folded: bool) -> None:
        super().__init__()
        self.dim = config.dim
        self.linear = nn.Linear(config.dim, config.patch_size**2 * config.in_channels)
        if not folded:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.time_channels, config.dim))

    def modulate(self, time_embedding: Tensor) -> Tensor:
        """Turn ``[B, time_channels]`` fp32 into a scale ``[B, 1, dim]``."""
        return 1 + _linear_fp32(functional.silu(time_embedding), self.adaLN_modulation[1]).unsqueeze(1)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """Project ``[B, N, dim]`` to ``[B, N, patch * patch * channels]``."""
        normed = functional.layer_norm(x, (self.dim,), eps=FINAL_NORM_EPS)
        if (
            scale.dim() == 1
        ):  # one scale for all images is cheaper to put into the weight: no pass over tokens
            weight = (self.linear.weight * scale).to(x.dtype)
            return functional.linear(normed.to(x.dtype), weight, self.linear.bias)
        out: Tensor = self.linear((normed * scale).to(x.dtype))
        return out


def _linear_fp32(x: Tensor, layer: nn.Module) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        return functional.linear(x.float(), weight.float(), bias.float())
