"""SANA's transformer as checkpoints store it, parameter by parameter, and what only time reads of it.

Source: Xie et al., arXiv 2410.10629; Chen et al., arXiv 2503.09641 (SANA-Sprint's guidance embedding and
query-key norms); names are diffusers'.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinshot_engine.transformer.linear_attention_config import LinearAttentionConfig
from twinshot_engine.transformer.time_embedding import FREQUENCIES, sinusoid

TIME_SCALE = 1000.0
"""What times from 0 to 1 are multiplied by before SANA embeds them; Sprint embeds them as they are."""


def _module(**parts: nn.Module) -> nn.Module:
    """Name some modules."""
    container = nn.Module()
    for name, part in parts.items():
        container.add_module(name, part)
    return container


def _norm(channels: int) -> nn.Module:
    """A norm with a scale alone."""
    norm = nn.Module()
    norm.weight = nn.Parameter(torch.empty(channels))
    return norm


class StoredEmbedder(nn.Module):
    """From a scaled number to a vector: sinusoid, linear, SiLU, linear."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(FREQUENCIES, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, number: Tensor) -> Tensor:
        """Embed ``[B]`` as ``[B, dim]``."""
        embedding: Tensor = self.linear_2(functional.silu(self.linear_1(sinusoid(number))))
        return embedding


class StoredTime(nn.Module):
    """AdaLN-single: one embedding, and the six vectors that all blocks share."""

    def __init__(self, dim: int, *, guidance: bool) -> None:
        super().__init__()
        self.guidance = guidance
        if guidance:
            self.timestep_embedder = StoredEmbedder(dim)
            self.guidance_embedder = StoredEmbedder(dim)
        else:
            self.emb = _module(timestep_embedder=StoredEmbedder(dim))
        self.linear = nn.Linear(dim, 6 * dim)

    def forward(self, time: Tensor, guidance: Tensor) -> tuple[Tensor, Tensor]:
        """Embed scaled times ``[B]`` and guidances ``[B]``: ``[B, 6 dim]`` and ``[B, dim]``."""
        if self.guidance:
            embedding = self.timestep_embedder(time) + self.guidance_embedder(guidance)
        else:
            embedding = self.emb.get_submodule("timestep_embedder")(time)
        return self.linear(functional.silu(embedding)), embedding


def _attention(dim: int, *, norms: bool, bias: bool) -> nn.Module:
    parts: dict[str, nn.Module] = {f"to_{part}": nn.Linear(dim, dim, bias=bias) for part in "qkv"}
    if norms:
        parts |= {"norm_q": _norm(dim), "norm_k": _norm(dim)}
    return _module(**parts, to_out=nn.ModuleList([nn.Linear(dim, dim)]))


class StoredBlock(nn.Module):
    """Self-attention, cross-attention and a convolutional feed-forward layer."""

    def __init__(self, config: LinearAttentionConfig) -> None:
        super().__init__()
        dim, hidden, norms = config.dim, config.hidden, config.qk_norm is not None
        self.scale_shift_table = nn.Parameter(torch.empty(6, dim))
        self.attn1 = _attention(dim, norms=norms, bias=config.attention_bias)
        self.attn2 = _attention(dim, norms=norms, bias=True)
        self.ff = _module(
            conv_inverted=nn.Conv2d(dim, 2 * hidden, 1),
            conv_depth=nn.Conv2d(2 * hidden, 2 * hidden, 3, groups=2 * hidden),
            conv_point=nn.Conv2d(hidden, dim, 1, bias=False),
        )


class StoredTransformer(nn.Module):
    """All parameters under diffusers' names; TwinFlow adds ``time_embed_2``."""

    def __init__(self, config: LinearAttentionConfig) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.patch_embed = _module(proj=nn.Conv2d(config.in_channels, dim, 1))
        self.time_embed = StoredTime(dim, guidance=config.guidance_embeds)
        if config.second_time_embedder:
            self.time_embed_2 = StoredTime(dim, guidance=config.guidance_embeds)
        self.caption_projection = _module(
            linear_1=nn.Linear(config.caption_channels, dim), linear_2=nn.Linear(dim, dim)
        )
        self.caption_norm = _norm(dim)
        self.transformer_blocks = nn.ModuleList(StoredBlock(config) for _ in range(config.num_layers))
        self.scale_shift_table = nn.Parameter(torch.empty(2, dim))
        self.proj_out = nn.Linear(dim, config.out_channels)

    def embed_time(self, t: Tensor, target_t: Tensor, guidance: float) -> tuple[Tensor, Tensor]:
        """Embed times as the network is given them: ``[B, 6 dim]`` and ``[B, dim]``.

        TwinFlow adds the target's embedding, weighted by how far away it is; both vectors take part.
        Source: inclusionAI/TwinFlow, ``networks/openuni/transformer_sana.py``.

        Args:
            t: current times ``[B]``, scaled.
            target_t: target times ``[B]``, scaled alike.
            guidance: Sprint's guidance, scaled.
        """
        amount = torch.full_like(t, guidance)
        shared, embedding = self.time_embed(t, amount)
        if self.config.second_time_embedder:
            distance = ((t - target_t) / TIME_SCALE)[:, None]
            second = self.time_embed_2(target_t, amount)
            shared, embedding = shared + distance * second[0], embedding + distance * second[1]
        return shared, embedding

    def modulate(self, t: Tensor, target_t: Tensor, guidance: float) -> Tensor:
        """Compute all that time does: ``[B, 6 * blocks + 2, dim]``.

        A block's rows are scale, shift and gate of self-attention, then of the feed-forward layer; scale and
        shift of the last norm follow. Scales have their 1 added.
        """
        shared, embedding = self.embed_time(t, target_t, guidance)
        shared = torch.unflatten(shared, 1, (6, -1))
        blocks = [shared + block.get_parameter("scale_shift_table") for block in self.transformer_blocks]
        last = embedding[:, None] + self.scale_shift_table
        rows = torch.cat([*(block[:, [1, 0, 2, 4, 3, 5]] for block in blocks), last[:, [1, 0]]], dim=1)
        scales = [*(6 * block + place for block in range(len(blocks)) for place in (0, 3)), rows.shape[1] - 2]
        rows[:, scales] += 1
        return rows
