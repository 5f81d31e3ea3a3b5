"""The denoiser of Stable Diffusion 3.5: image and text in two streams that attend together.

This is the form that serves: packed projections, and modulation that was made with the text (see
:mod:`~twinshot_engine.transformer.joint_modulation`). Source: Esser et al., arXiv 2403.03206; names and
shapes of a checkpoint are diffusers' ``SD3Transformer2DModel``, plus TwinFlow's ``time_text_embed_2``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinshot_engine.precision import modulate, takes_rows
from twinshot_engine.tables import keep
from twinshot_engine.transformer.joint_blocks import EPS, JointBlock, Still, Stream
from twinshot_engine.transformer.joint_config import JointConfig
from twinshot_engine.transformer.joint_modulation import PromptModulation, StreamModulation


class JointTransformer(nn.Module):
    """Predicts a velocity from latents, a caption and modulation."""

    positions: Tensor
    """``[rows, columns, dim]``: the middle of the stored position embedding, for the largest picture."""

    def __init__(self, config: JointConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.dim, config.patch_size
        self.proj = nn.Conv2d(config.in_channels, dim, patch, stride=patch)
        self.context_embedder = nn.Linear(config.joint_attention_dim, dim)
        self.modulation = PromptModulation(config)
        self.transformer_blocks = nn.ModuleList(
            JointBlock(
                config, dual=index in config.dual_attention_layers, last=index == config.num_layers - 1
            )
            for index in range(config.num_layers)
        )
        self.proj_out = nn.Linear(dim, patch * patch * config.in_channels)
        self.register_buffer("positions", torch.empty(0), persistent=False)
        self._still: dict[tuple[int, torch.device], Still] = {}

    def embed_context(self, embeddings: Tensor) -> Tensor:
        """Bring text embeddings ``[B, L, joint_attention_dim]`` into their stream: ``[B, L, dim]``."""
        tokens: Tensor = self.context_embedder(embeddings)
        return tokens

    def predict(self, latents: Tensor, context: Tensor, packed: Tensor) -> Tensor:
        """Predict a velocity.

        Args:
            latents: ``[B, C, H, W]``, H and W multiples of the patch size.
            context: ``[B, L, dim]`` from :meth:`embed_context`.
            packed: ``[B, 1, V * dim]``, one pass of what :attr:`modulation` makes.

        Returns:
            ``[B, C, H, W]``, from data to noise.
        """
        rows, columns = (side // self.config.patch_size for side in latents.shape[2:])
        image = self._embed_image(latents, rows, columns)
        return self._to_latents(self._run(image, context, list(self.modulation.name(packed))), rows, columns)

    def _run(self, image: Tensor, context: Tensor, named: list[StreamModulation]) -> Tensor:
        """Run the blocks, and the norm behind them."""
        blocks = cast("list[JointBlock]", list(self.transformer_blocks))
        pairs = list(zip(named[:-1:2], named[1::2], strict=True))
        rows = [*(takes_rows(block.attn.to_qkv) for block in blocks), False]
        first, second = (
            _open(x, own, rows=rows[0]) for x, own in zip((image, context), pairs[0], strict=True)
        )
        split, tokens = image.shape[1], image.shape[1] + context.shape[1]
        still = self._find_still(tokens, image.device)
        room = image.new_empty(image.shape[0], tokens, 3 * self.config.dim)
        # Behind the last block the text stream has ended, so any vectors will do.
        steps = pairwise([*pairs, (named[-1], named[-1])])
        for block, (own, ahead), rows_ahead in zip(blocks, steps, rows[1:], strict=True):
            mixed = block.attn(first.h, second.h, room, still)
            second = block.close_text(second, mixed[:, split:], own[1], ahead[1], rows_ahead=rows_ahead)
            first = block.close_image(
                first.x, mixed[:, :split], still.first(split), own[0], ahead[0], rows_ahead=rows_ahead
            )
        return first.normed()

    def _find_still(self, tokens: int, device: torch.device) -> Still:
        head_dim = self.config.attention_head_dim
        return keep(self._still, (tokens, device), lambda: Still.make(tokens, head_dim, device))

    def _embed_image(self, latents: Tensor, rows: int, columns: int) -> Tensor:
        patch, channels = self.config.patch_size, self.config.in_channels
        split = latents.reshape(-1, channels, rows, patch, columns, patch)
        patches = split.permute(0, 2, 4, 1, 3, 5).flatten(3)
        tokens = functional.linear(patches, self.proj.weight.flatten(1), self.proj.bias)
        have = len(self.positions)
        top, left = (have - rows) // 2, (have - columns) // 2
        tokens = tokens + self.positions[top : top + rows, left : left + columns]
        return tokens.flatten(1, 2)

    def _to_latents(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        patch, channels = self.config.patch_size, self.config.in_channels
        patches: Tensor = self.proj_out(tokens)
        split = patches.reshape(-1, rows, columns, patch, patch, channels)
        return split.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def _open(x: Tensor, own: StreamModulation, *, rows: bool) -> Stream:
    """Normalise a stream for the first block."""
    return Stream(x, modulate(x, own.scale, own.shift, EPS, quantized=rows))
