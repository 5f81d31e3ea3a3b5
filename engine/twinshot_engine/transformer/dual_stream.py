"""The Qwen-Image denoiser in the form that serves: two streams that attend together, time as vectors.

Queries, keys and values of both streams are written into one buffer, image first, text behind it, the text's
padding last; attention reads that buffer where it lies and is told how many keys count. Each norm is part of
the residual sum before it. Source: arXiv 2508.02324 (Qwen-Image), 2512.05150 (TwinFlow).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from twinshot_engine.precision import (
    Activation,
    GeluMLP,
    Projection,
    gate_add_modulate,
    modulate,
    takes_rows,
)
from twinshot_engine.tables import keep
from twinshot_engine.transformer.blocks import RMSNorm
from twinshot_engine.transformer.dual_stream_config import NORM_EPS, DualStreamConfig
from twinshot_engine.transformer.dual_stream_modulation import Affine, DualStreamModulation, HalfModulation
from twinshot_engine.transformer.dual_stream_positions import JointLayout, JointPositions
from twinshot_engine.transformer.lanes import Lanes
from twinshot_engine.transformer.positions import RotaryTable
from twinshot_kernels import attention, joint_norm_rotary


class StreamState(NamedTuple):
    """A stream ``[B, N, dim]`` and its modulated norm, the next layer's input."""

    x: Tensor
    h: Activation


class HalfBlock(nn.Module):
    """One stream's share of a block.

    Args:
        config: sizes.
        ends: whether nobody reads the stream behind this block, which then only projects it.
    """

    def __init__(self, config: DualStreamConfig, *, ends: bool = False) -> None:
        super().__init__()
        dim = config.dim
        self.to_qkv = Projection(dim, 3 * dim, bias=True)
        if not ends:
            self.to_out = Projection(dim, dim, bias=True)
            self.mlp = GeluMLP(dim, config.ffn_channels)

    def open(self, x: Tensor, modulation: HalfModulation) -> StreamState:
        """Modulate the stream for this block, where no block before it did."""
        scale, shift = modulation.attention_scale, modulation.attention_shift
        return StreamState(x, modulate(x, scale, shift, NORM_EPS, quantized=takes_rows(self.to_qkv)))

    def close(
        self, x: Tensor, mixed: Tensor, modulation: HalfModulation, ahead: Affine, *, rows_ahead: bool
    ) -> StreamState:
        """Take what attention mixed for the stream ``x`` through the rest of the block.

        Args:
            x: ``[B, N, dim]``.
            mixed: likewise.
            modulation: this block's.
            ahead: what modulates the next layer's input.
            rows_ahead: whether the next layer reads quantised rows.
        """
        x, h = gate_add_modulate(
            x,
            self.to_out(mixed),
            modulation.attention_gain,
            modulation.ffn_scale,
            modulation.ffn_shift,
            NORM_EPS,
            quantized=takes_rows(self.mlp.up),
        )
        return StreamState(
            *gate_add_modulate(x, self.mlp(h), modulation.ffn_gain, *ahead, NORM_EPS, quantized=rows_ahead)
        )


class Block(nn.Module):
    """Joint attention and two feed-forward layers; ``scales`` are those of the queries' and keys' norms."""

    def __init__(self, config: DualStreamConfig, *, last: bool) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.image = HalfBlock(config)
        self.text = HalfBlock(config, ends=last)
        self.scales = nn.Parameter(torch.empty(4 * config.attention_head_dim))

    def attend(self, qkv: Tensor, table: RotaryTable, key_lengths: Tensor, split: int) -> Tensor:
        """Mix the tokens of both streams' projections ``[B, N, 3 dim]``, the first ``split`` the image's."""
        scales = self.scales.view(2, 2, -1)
        query, key, value = joint_norm_rotary(qkv, scales, *table, NORM_EPS, split=split, heads=self.heads)
        return attention(query, key, value, key_lengths=key_lengths).flatten(-2)


@dataclass(frozen=True, slots=True)
class _Joint:
    """Both streams' projections and what attention needs to know of them.

    Attributes:
        room: ``[B, N, 3 dim]``, used by one block after another.
        table: of all N tokens.
        key_lengths: ``[B]`` int32.
        split: tokens of the image, which come first.
        lanes: where the streams' work runs.
    """

    room: Tensor
    table: RotaryTable
    key_lengths: Tensor
    split: int
    lanes: Lanes

    def attend(self, block: Block, image: Activation, text: Activation) -> Tensor:
        """Project both streams and mix their tokens, ``[B, N, dim]``."""
        with self.lanes.second():
            block.text.to_qkv.project_into(self.room[:, self.split :], text)
        block.image.to_qkv.project_into(self.room[:, : self.split], image)
        self.lanes.join()
        return block.attend(self.room, self.table, self.key_lengths, self.split)


class DualStreamTransformer(nn.Module):
    """The serving form: no time embedder, no adaLN; it is handed what they made of a pass's times."""

    def __init__(self, config: DualStreamConfig) -> None:
        super().__init__()
        self.config = config
        self.img_in = nn.Linear(config.in_channels, config.dim)
        self.txt_norm = RMSNorm(config.joint_attention_dim, NORM_EPS)
        self.txt_in = nn.Linear(config.joint_attention_dim, config.dim)
        last = config.num_layers - 1
        self.blocks = nn.ModuleList(Block(config, last=i == last) for i in range(config.num_layers))
        self.proj_out = nn.Linear(config.dim, config.in_channels)
        self.positions = JointPositions(config)
        self._lanes: dict[torch.device, Lanes] = {}

    def embed_text(self, embeddings: Tensor) -> Tensor:
        """Bring caption embeddings ``[B, L, joint_attention_dim]`` into the text stream ``[B, L, dim]``."""
        tokens: Tensor = self.txt_in(self.txt_norm(embeddings))
        return tokens

    def predict(self, latents: Tensor, text: Tensor, lengths: Tensor, modulation: Tensor) -> Tensor:
        """Predict TwinFlow's velocity.

        Args:
            latents: ``[B, C, H, W]``, H and W multiples of the patch size.
            text: ``[B, L, dim]`` from :meth:`embed_text`.
            lengths: ``[B]`` int32, true text tokens; the rest is seen by no image.
            modulation: a packed :class:`DualStreamModulation` ``[V, dim]`` fp32.

        Returns:
            ``[B, C, H, W]``.

        Raises:
            ValueError: there are no positions for the size.
        """
        patch = self.config.patch_size
        layout = JointLayout(latents.shape[2] // patch, latents.shape[3] // patch, text.shape[1])
        table = self.positions.table(layout, latents.device)
        image: Tensor = self.img_in(_to_patches(latents, patch))
        room = image.new_empty(image.shape[0], layout.patches + layout.text, 3 * self.config.dim)
        lanes = self._lanes_of(latents.device)
        joint = _Joint(room, table, lengths + layout.patches, layout.patches, lanes)
        out = self._run(joint, image, text, DualStreamModulation.unpack(modulation))
        return _to_latents(self.proj_out(out), layout, patch)

    def _run(self, joint: _Joint, image: Tensor, text: Tensor, modulation: DualStreamModulation) -> Tensor:
        """Run the blocks and return what the last projection reads, ``[B, N, dim]``."""
        *blocks, last = cast("list[Block]", list(self.blocks))
        first = (*blocks, last)[0]
        images = first.image.open(image, modulation.image[0])
        texts = opened = first.text.open(text, modulation.text[0])
        joint.lanes.fork()
        for index, block in enumerate(blocks):
            mixed = joint.attend(block, images.h, texts.h)
            # Until the lanes join again, this loop's ``mixed`` is what the second one reads.
            joint.lanes.fork()
            with joint.lanes.second():
                texts = _close(block.text, texts, mixed[:, joint.split :], modulation.text, index)
            images = _close(block.image, images, mixed[:, : joint.split], modulation.image, index)
        mixed = joint.attend(last, images.h, texts.h)[:, : joint.split]
        del opened  # made in the first lane and read by the second: kept until both have met
        ends = last.image.close(images.x, mixed, modulation.image[-1], modulation.final, rows_ahead=False)
        return cast("Tensor", ends.h)

    @property
    def overlaps(self) -> bool:
        """Whether the text's products run beside the image's: in fp8 that is faster, in bf16 it is not."""
        return takes_rows(cast("Block", self.blocks[0]).image.to_qkv)

    def _lanes_of(self, device: torch.device) -> Lanes:
        return keep(self._lanes, device, lambda: Lanes(device, parallel=self.overlaps))


def _close(
    half: HalfBlock, state: StreamState, mixed: Tensor, modulation: tuple[HalfModulation, ...], index: int
) -> StreamState:
    """Close a stream's share of block ``index``, which has another behind it in the same format."""
    after = modulation[index + 1]
    ahead = Affine(after.attention_scale, after.attention_shift)
    return half.close(state.x, mixed, modulation[index], ahead, rows_ahead=takes_rows(half.to_qkv))


def _to_patches(latents: Tensor, patch: int) -> Tensor:
    """Turn ``[B, C, H, W]`` into ``[B, N, C * patch * patch]``, row by row."""
    batch, channels, height, width = latents.shape
    split = latents.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return split.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def _to_latents(patches: Tensor, layout: JointLayout, patch: int) -> Tensor:
    """Undo :func:`_to_patches`."""
    split = patches.reshape(patches.shape[0], layout.rows, layout.columns, -1, patch, patch)
    return split.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
