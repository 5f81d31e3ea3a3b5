"""The Z-Image denoiser: image and caption tokens in one stream, time as scales and gates.

Parameter names and shapes are those of diffusers' ``ZImageTransformer2DModel``, plus TwinFlow's
``t_embedder_2``, so state dicts load either way. Batched tensors and fixed shapes throughout: the
same module trains, compiles and serves. Source: arXiv 2511.22699 (Z-Image), 2512.05150 (TwinFlow).
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from twinshot_engine.transformer.blocks import CaptionBlock, FinalLayer, ModulatedBlock, RMSNorm
from twinshot_engine.transformer.config import SingleStreamConfig
from twinshot_engine.transformer.initial_weights import set_initial_weights
from twinshot_engine.transformer.positions import Layout, RotaryPositions
from twinshot_engine.transformer.time_embedding import TimeEmbedder, model_time

__all__ = ["SingleStreamConfig", "SingleStreamTransformer"]


class SingleStreamTransformer(nn.Module):
    """Predicts a velocity from latents, a pair of times and caption embeddings."""

    def __init__(self, config: SingleStreamConfig) -> None:
        super().__init__()
        self.config = config
        dim, name = config.dim, config.patch_name
        self.all_x_embedder = nn.ModuleDict({name: nn.Linear(config.patch_size**2 * config.in_channels, dim)})
        self.cap_embedder = nn.Sequential(
            RMSNorm(config.cap_feat_dim, config.norm_eps), nn.Linear(config.cap_feat_dim, dim)
        )
        self.x_pad_token = nn.Parameter(torch.zeros(1, dim))
        self.cap_pad_token = nn.Parameter(torch.zeros(1, dim))
        self.t_embedder = TimeEmbedder(config.time_channels)
        self.t_embedder_2 = TimeEmbedder(config.time_channels) if config.second_time_embedder else None
        self.noise_refiner = nn.ModuleList(ModulatedBlock(config) for _ in range(config.n_refiner_layers))
        self.context_refiner = nn.ModuleList(CaptionBlock(config) for _ in range(config.n_refiner_layers))
        self.layers = nn.ModuleList(ModulatedBlock(config) for _ in range(config.n_layers))
        self.all_final_layer = nn.ModuleDict({name: FinalLayer(config)})
        self.positions = RotaryPositions(config)

    def init_weights(self) -> None:
        """Set fresh weights for training from scratch: every block starts as the identity."""
        set_initial_weights(self)

    def embed_time(self, t: Tensor, target_t: Tensor, *, signed: bool = False) -> Tensor:
        """Embed the current and the target time in one vector.

        Args:
            t: ``[B]`` in [-1, 1]: 1 is noise, 0 data, negative the fake trajectory.
            target_t: ``[B]``, likewise; ignored by a model without a second time embedder.
            signed: keep the sign of ``t``. Training needs it to tell the two trajectories apart at
                ``t == target_t``, where the released rule cannot. Positive times embed bit for bit alike.

        Returns:
            ``[B, min(dim, 256)]`` fp32.
        """
        now, target = model_time(t), model_time(target_t)
        scale = self.config.t_scale
        embedding: Tensor = self.t_embedder((now if signed else now.abs()) * scale)
        if self.t_embedder_2 is None:
            return embedding
        gap = target * scale - now * scale
        distance = (now - target).abs().float().unsqueeze(1)
        shifted: Tensor = embedding + self.t_embedder_2(gap) * distance
        return shifted

    def forward(self, latents: Tensor, time_embedding: Tensor, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """Predict in Z-Image's own direction, from noise to data.

        Args:
            latents: ``[B, C, H, W]``, H and W multiples of the patch size.
            time_embedding: ``[B, min(dim, 256)]``, or ``[1, ...]`` for one time in the whole batch.
            embeddings: ``[B, L, cap_feat_dim]``, L a multiple of 32.
            lengths: ``[B]`` integers; tokens at or beyond a row's length become the learned pad token.

        Returns:
            ``[B, C, H, W]``: the negative of TwinFlow's velocity.

        Raises:
            ValueError: L or the image size has no positions.
        """
        patch = self.config.patch_size
        layout = Layout(embeddings.shape[1], latents.shape[2] // patch, latents.shape[3] // patch)
        tables = self.positions.tables(layout, latents.device)
        image, caption = self._embed_image(latents, layout), self._embed_caption(embeddings, lengths)
        for block in _modulated(self.noise_refiner):
            image = block(image, tables.image, block.modulate(time_embedding))
        for caption_block in self.context_refiner:
            caption = caption_block(caption, tables.caption)
        stream = torch.cat((image, caption), dim=1)
        for block in _modulated(self.layers):
            stream = block(stream, tables.joint, block.modulate(time_embedding))
        return self._to_latents(stream[:, : layout.patches], time_embedding, layout)

    def velocity(
        self,
        latents: Tensor,
        t: Tensor,
        target_t: Tensor,
        embeddings: Tensor,
        lengths: Tensor,
        *,
        signed: bool = False,
    ) -> Tensor:
        """Predict TwinFlow's velocity ``v = z - x`` for ``x_t = t z + (1 - t) x``.

        Arguments are those of :meth:`embed_time` and :meth:`forward`; returns ``[B, C, H, W]``.
        """
        prediction: Tensor = self(latents, self.embed_time(t, target_t, signed=signed), embeddings, lengths)
        return -prediction

    def _embed_image(self, latents: Tensor, layout: Layout) -> Tensor:
        patch = self.config.patch_size
        split = latents.reshape(-1, latents.shape[1], layout.rows, patch, layout.columns, patch)
        patches = split.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        tokens: Tensor = self.all_x_embedder[self.config.patch_name](patches)
        if layout.padding == 0:
            return tokens
        padding = self.x_pad_token.to(tokens.dtype).expand(tokens.shape[0], layout.padding, -1)
        return torch.cat((tokens, padding), dim=1)

    def _embed_caption(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        tokens: Tensor = self.cap_embedder(embeddings)
        padded = torch.arange(tokens.shape[1], device=tokens.device) >= lengths.to(tokens.device)[:, None]
        return torch.where(padded.unsqueeze(-1), self.cap_pad_token.to(tokens.dtype), tokens)

    def _to_latents(self, tokens: Tensor, time_embedding: Tensor, layout: Layout) -> Tensor:
        patch = self.config.patch_size
        final = cast(FinalLayer, self.all_final_layer[self.config.patch_name])
        patches: Tensor = final(tokens, final.modulate(time_embedding))
        split = patches.reshape(-1, layout.rows, layout.columns, patch, patch, self.config.in_channels)
        return split.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def _modulated(blocks: nn.ModuleList) -> Iterable[ModulatedBlock]:
    return cast(Iterable[ModulatedBlock], blocks)
