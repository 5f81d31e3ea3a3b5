"""What time and prompt do to a joint transformer: one vector a scale, shift and gate.

Stable Diffusion 3 embeds time and the pooled prompt in one vector, ``E(t, p) = T(t) + P(p)``, from which
adaLN makes every block's vectors by one linear layer each. TwinFlow adds ``(t - target) E2(target, p)``. So
unlike Z-Image's they differ from prompt to prompt; but they depend on nothing else, and times are a closed
set: they are all made with the text, once a prompt, and kept with its caption. What is left of time is a row
``T(t) + (t - target) T2(target)`` and a number ``t - target`` a pass.
Sources: Esser et al., arXiv 2403.03206; inclusionAI/TwinFlow, ``networks/stable_diffusion_3``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinshot_engine.precision import Projection
from twinshot_engine.transformer.joint_config import JointConfig

ZERO = ("shift", "scale", "gate", "mlp_shift", "mlp_scale", "mlp_gate")
"""Vectors of a stream in a block, in the order that adaLN stores them."""

DUAL = (*ZERO, "shift2", "scale2", "gate2")
"""Likewise of an image stream with a second attention of its own."""

CONTINUOUS = ("scale", "shift")
"""Likewise of a norm that ends a stream."""

_ROWS = 16


class Modulator(NamedTuple):
    """One of a checkpoint's adaLN layers: its stored name, and the vectors that it makes."""

    name: str
    vectors: tuple[str, ...]


class StreamModulation(NamedTuple):
    """Vectors ``[B, 1, dim]`` of one stream in one block; what a block does not have is its first vector."""

    scale: Tensor
    shift: Tensor
    gate: Tensor
    mlp_scale: Tensor
    mlp_shift: Tensor
    mlp_gate: Tensor
    scale2: Tensor
    shift2: Tensor
    gate2: Tensor


def modulators(config: JointConfig) -> list[Modulator]:
    """List the adaLN layers: each block's image and text stream, then the end."""
    last = config.num_layers - 1
    found = []
    for index in range(config.num_layers):
        block = f"transformer_blocks.{index}."
        image = DUAL if index in config.dual_attention_layers else ZERO
        found.append(Modulator(f"{block}norm1.linear", image))
        found.append(Modulator(f"{block}norm1_context.linear", CONTINUOUS if index == last else ZERO))
    return [*found, Modulator("norm_out.linear", CONTINUOUS)]


class PromptModulation(nn.Module):
    """From the pooled prompt to the vectors of every block in every advertised pass.

    All adaLN layers are one projection. Scales come out as ``1 + scale``, as norms read them.
    """

    times: Tensor
    gaps: Tensor

    def __init__(self, config: JointConfig) -> None:
        super().__init__()
        self.config = config
        self.modulators = modulators(config)
        names = list(chain.from_iterable(each.vectors for each in self.modulators))
        self.is_scale = [name.endswith(("scale", "scale2")) for name in names]
        self.text_embedder = TextEmbedder(config)
        self.text_embedder_2 = TextEmbedder(config) if config.second_time_embedder else None
        self.linear = Projection(config.dim, len(names) * config.dim)
        self.bias = nn.Parameter(torch.empty(len(names) * config.dim))
        for name in ("times", "gaps", "offset"):
            self.register_buffer(name, torch.empty(0), persistent=False)

    def set_times(self, times: Tensor, gaps: Tensor) -> None:
        """Complete a filled module by its passes.

        Args:
            times: ``[P, dim]`` fp32, ``T(t) + (t - target) T2(target)`` of each pass.
            gaps: ``[P, 1]`` fp32, ``t - target``.
        """
        ones = torch.tensor(self.is_scale, dtype=torch.float32, device=self.bias.device)
        self.offset = self.bias.float() + ones.repeat_interleave(self.config.dim)
        self.times, self.gaps = times, gaps

    def forward(self, pooled: Tensor) -> Tensor:
        """Map ``[B, pooled_projection_dim]`` to ``[B, P, V * dim]``."""
        embedding = self.times + self.text_embedder(pooled).float().unsqueeze(1)
        if self.text_embedder_2 is not None:
            embedding = embedding + self.gaps * self.text_embedder_2(pooled).float().unsqueeze(1)
        passes = embedding.shape[1]
        # A few rows cost as much as a tile of them, and products of a tile are the ones that are tuned.
        rows = functional.pad(functional.silu(embedding), (0, 0, 0, -passes % _ROWS))
        raw: Tensor = self.linear(rows.to(pooled.dtype))[:, :passes]
        return (raw + self.offset).to(pooled.dtype)

    def name(self, packed: Tensor) -> Iterator[StreamModulation]:
        """Name one pass's vectors ``[B, 1, V * dim]``, as views: a stream for each of the modulators."""
        vectors = iter(packed.chunk(len(self.is_scale), dim=-1))
        for modulator in self.modulators:
            named = {name: next(vectors) for name in modulator.vectors}
            absent = named["scale"]
            yield StreamModulation(*(named.get(field, absent) for field in StreamModulation._fields))


class TextEmbedder(nn.Module):
    """Two linear layers on the pooled prompt."""

    def __init__(self, config: JointConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.pooled_projection_dim, config.dim)
        self.linear_2 = nn.Linear(config.dim, config.dim)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map ``[B, pooled_projection_dim]`` to ``[B, dim]``."""
        embedding: Tensor = self.linear_2(functional.silu(self.linear_1(pooled)))
        return embedding
