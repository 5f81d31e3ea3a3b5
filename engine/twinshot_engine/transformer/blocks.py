"""The layers of a single-stream transformer, under diffusers' parameter names."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from twinshot_engine.transformer.config import SingleStreamConfig
from twinshot_engine.transformer.positions import RotaryTable
from twinshot_kernels import attention, rms_norm, rotary, swiglu

QK_NORM_EPS = 1e-5
FINAL_NORM_EPS = 1e-6


class Modulation(NamedTuple):
    """What time does to one block, ready to use: each ``[B, 1, dim]``."""

    attention_scale: Tensor
    attention_gate: Tensor
    ffn_scale: Tensor
    ffn_gate: Tensor


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

    def __init__(self, config: SingleStreamConfig) -> None:
        super().__init__()
        dim = config.dim
        self.head_dim = config.head_dim
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim, bias=False)])
        self.norm_q = RMSNorm(config.head_dim, QK_NORM_EPS) if config.qk_norm else nn.Identity()
        self.norm_k = RMSNorm(config.head_dim, QK_NORM_EPS) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, table: RotaryTable) -> Tensor:
        """Mix the tokens of ``x`` ``[B, N, dim]``."""
        heads = (-1, self.head_dim)
        query = rotary(self.norm_q(torch.unflatten(self.to_q(x), -1, heads)), table.cos, table.sin)
        key = rotary(self.norm_k(torch.unflatten(self.to_k(x), -1, heads)), table.cos, table.sin)
        mixed = attention(query, key, torch.unflatten(self.to_v(x), -1, heads))
        out: Tensor = self.to_out[0](mixed.flatten(-2))
        return out


class FeedForward(nn.Module):
    """Gated feed-forward layer of width 8/3 dim."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = int(dim / 3 * 8)
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token of ``[B, N, dim]``."""
        out: Tensor = self.w2(swiglu(self.w1(x), self.w3(x)))
        return out


class _Block(nn.Module):
    def __init__(self, config: SingleStreamConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config.dim)
        self.attention_norm1 = RMSNorm(config.dim, config.norm_eps)
        self.attention_norm2 = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm1 = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm2 = RMSNorm(config.dim, config.norm_eps)


class CaptionBlock(_Block):
    """A block that does not know the time; it refines the caption."""

    def forward(self, x: Tensor, table: RotaryTable) -> Tensor:
        """Refine caption tokens ``[B, L, dim]``."""
        x = x + self.attention_norm2(self.attention(self.attention_norm1(x), table))
        out: Tensor = x + self.ffn_norm2(self.feed_forward(self.ffn_norm1(x)))
        return out


class ModulatedBlock(_Block):
    """A block scaled and gated by time."""

    def __init__(self, config: SingleStreamConfig) -> None:
        super().__init__(config)
        self.adaLN_modulation = nn.Sequential(nn.Linear(config.time_channels, 4 * config.dim))

    def modulate(self, time_embedding: Tensor) -> Modulation:
        """Turn ``[B, time_channels]`` into this block's scales and gates."""
        weight = self.adaLN_modulation.get_parameter("0.weight")
        raw: Tensor = self.adaLN_modulation(time_embedding.to(weight.dtype)).unsqueeze(1)
        attention_scale, attention_gate, ffn_scale, ffn_gate = raw.chunk(4, dim=-1)
        return Modulation(1 + attention_scale, attention_gate.tanh(), 1 + ffn_scale, ffn_gate.tanh())

    def forward(self, x: Tensor, table: RotaryTable, modulation: Modulation) -> Tensor:
        """Refine tokens ``[B, N, dim]``."""
        mixed = self.attention(self.attention_norm1(x) * modulation.attention_scale, table)
        x = x + modulation.attention_gate * self.attention_norm2(mixed)
        widened = self.feed_forward(self.ffn_norm1(x) * modulation.ffn_scale)
        out: Tensor = x + modulation.ffn_gate * self.ffn_norm2(widened)
        return out


class FinalLayer(nn.Module):
    """From tokens to patches, scaled by time."""

    def __init__(self, config: SingleStreamConfig) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(config.dim, elementwise_affine=False, eps=FINAL_NORM_EPS)
        self.linear = nn.Linear(config.dim, config.patch_size**2 * config.in_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.time_channels, config.dim))

    def modulate(self, time_embedding: Tensor) -> Tensor:
        """Turn ``[B, time_channels]`` into a scale ``[B, 1, dim]``."""
        weight = self.adaLN_modulation.get_parameter("1.weight")
        scale: Tensor = self.adaLN_modulation(time_embedding.to(weight.dtype)).unsqueeze(1)
        return 1 + scale

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """Project ``[B, N, dim]`` to ``[B, N, patch * patch * channels]``."""
        out: Tensor = self.linear(self.norm_final(x) * scale)
        return out
