"""The Z-Image denoiser: image and caption tokens in one stream, time as scales and gates.

:class:`SingleStreamTransformer` is the open form: parameter names and shapes are those of diffusers'
``ZImageTransformer2DModel``, plus TwinFlow's ``t_embedder_2``, so state dicts load either way; it trains.
:class:`FoldedTransformer` is the form that serves: packed projections, and of time only a table of vectors
(see :mod:`~twinshot_engine.transformer.folding`). Both run the same forward pass, with batched tensors and
fixed shapes throughout. Source: arXiv 2511.22699 (Z-Image), 2512.05150 (TwinFlow).
"""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from twinshot_engine.transformer.blocks import Block, CaptionBlock, FinalLayer, ModulatedBlock, RMSNorm
from twinshot_engine.transformer.config import SingleStreamConfig
from twinshot_engine.transformer.initial_weights import set_initial_weights
from twinshot_engine.transformer.modulation import BlockModulation, StreamModulation, scales_ahead
from twinshot_engine.transformer.positions import Layout, RotaryPositions, RotaryTable
from twinshot_engine.transformer.time_embedding import TimeEmbedder, model_time

__all__ = ["FoldedTransformer", "SingleStreamConfig", "SingleStreamTransformer"]


class _Stream(nn.Module):
    """What both forms share: embedding, the blocks in order, and the way back to latents."""

    def __init__(self, config: SingleStreamConfig, *, folded: bool) -> None:
        super().__init__()
        self.config = config
        dim, name = config.dim, config.patch_name
        self.all_x_embedder = nn.ModuleDict({name: nn.Linear(config.patch_size**2 * config.in_channels, dim)})
        self.cap_embedder = nn.Sequential(
            RMSNorm(config.cap_feat_dim, config.norm_eps), nn.Linear(config.cap_feat_dim, dim)
        )
        self.x_pad_token = nn.Parameter(torch.zeros(1, dim))
        self.cap_pad_token = nn.Parameter(torch.zeros(1, dim))
        self.noise_refiner = nn.ModuleList(_blocks(config, config.n_refiner_layers, folded=folded))
        self.context_refiner = nn.ModuleList(
            CaptionBlock(config, folded=folded) for _ in range(config.n_refiner_layers)
        )
        self.layers = nn.ModuleList(_blocks(config, config.n_layers, folded=folded))
        self.all_final_layer = nn.ModuleDict({name: FinalLayer(config, folded=folded)})
        self.positions = RotaryPositions(config)

    def refine_caption(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """Bring caption embeddings into the stream; depends on the prompt alone.

        Args:
            embeddings: ``[B, L, cap_feat_dim]``, L a multiple of 32.
            lengths: ``[B]`` integers; tokens at or beyond a row's length become the learned pad token.

        Returns:
            Caption tokens ``[B, L, dim]``.

        Raises:
            ValueError: L has no positions.
        """
        table = self.positions.caption(embeddings.shape[1], embeddings.device)
        blocks = cast(Iterable[CaptionBlock], self.context_refiner)
        tokens = self._embed_caption(embeddings, lengths)
        return _run(list(self.context_refiner), tokens, table, [block.modulation() for block in blocks])

    def predict(self, latents: Tensor, caption: Tensor, modulation: StreamModulation) -> Tensor:
        """Predict in Z-Image's own direction, from noise to data.

        Args:
            latents: ``[B, C, H, W]``, H and W multiples of the patch size.
            caption: ``[B, L, dim]`` from :meth:`refine_caption`.
            modulation: of the pass's times.

        Returns:
            ``[B, C, H, W]``: the negative of TwinFlow's velocity.

        Raises:
            ValueError: L or the image size has no positions.
        """
        patch = self.config.patch_size
        layout = Layout(caption.shape[1], latents.shape[2] // patch, latents.shape[3] // patch)
        tables = self.positions.tables(layout, latents.device)
        image = self._embed_image(latents, layout)
        image = _run(list(self.noise_refiner), image, tables.image, modulation.noise_refiner)
        stream = torch.cat((image, caption.to(image.dtype)), dim=1)
        stream = _run(list(self.layers), stream, tables.joint, modulation.layers)
        return self._to_latents(stream[:, : layout.patches], modulation.final_scale, layout)

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

    def _to_latents(self, tokens: Tensor, scale: Tensor, layout: Layout) -> Tensor:
        patch = self.config.patch_size
        patches: Tensor = self.all_final_layer[self.config.patch_name](tokens, scale)
        split = patches.reshape(-1, layout.rows, layout.columns, patch, patch, self.config.in_channels)
        return split.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


class FoldedTransformer(_Stream):
    """The serving form: no time embedder, no adaLN; it is handed what they made of a pass's times."""

    def __init__(self, config: SingleStreamConfig) -> None:
        super().__init__(config, folded=True)

    def modulation(self, row: Tensor) -> StreamModulation:
        """Name the vectors of a row of :func:`~twinshot_engine.transformer.folding.fold_times`, as views."""
        return StreamModulation.unpack(row, self.config.n_refiner_layers)


class SingleStreamTransformer(_Stream):
    """The open form: predicts a velocity from latents, a pair of times and caption embeddings."""

    def __init__(self, config: SingleStreamConfig) -> None:
        super().__init__(config, folded=False)
        self.t_embedder = TimeEmbedder(config.time_channels)
        self.t_embedder_2 = TimeEmbedder(config.time_channels) if config.second_time_embedder else None

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

    def modulate(self, time_embedding: Tensor) -> StreamModulation:
        """Turn a time embedding ``[B, min(dim, 256)]`` into every block's vectors."""
        final = cast(FinalLayer, self.all_final_layer[self.config.patch_name])
        return StreamModulation(
            tuple(block.modulate(time_embedding) for block in _modulated(self.noise_refiner)),
            tuple(block.modulate(time_embedding) for block in _modulated(self.layers)),
            final.modulate(time_embedding),
        )

    def forward(self, latents: Tensor, time_embedding: Tensor, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """Predict in Z-Image's own direction; see :meth:`predict` and :meth:`refine_caption`.

        ``time_embedding`` is ``[B, min(dim, 256)]``, or ``[1, ...]`` for one time in the whole batch.
        """
        caption = self.refine_caption(embeddings, lengths)
        return self.predict(latents, caption, self.modulate(time_embedding))

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


def _blocks(config: SingleStreamConfig, count: int, *, folded: bool) -> Iterable[nn.Module]:
    return (Block(config, folded=True) if folded else ModulatedBlock(config) for _ in range(count))


def _modulated(blocks: nn.ModuleList) -> Iterable[ModulatedBlock]:
    return cast(Iterable[ModulatedBlock], blocks)


def _run(
    modules: Sequence[nn.Module], x: Tensor, table: RotaryTable, modulations: Sequence[BlockModulation]
) -> Tensor:
    """Run blocks in order; each normalises its output for the next one."""
    blocks = cast(Sequence[Block], modules)
    if not blocks:
        return x
    h = blocks[0].open(x, modulations[0])
    # Nobody reads what the last block normalises; any scale will do.
    ahead = scales_ahead(modulations, modulations[-1].attention_scale)
    rows = [*(block.attention.takes_rows for block in blocks[1:]), False]
    for block, modulation, scale, rows_ahead in zip(blocks, modulations, ahead, rows, strict=True):
        x, h = block(x, h, table, modulation, scale, rows_ahead=rows_ahead)
    return x
