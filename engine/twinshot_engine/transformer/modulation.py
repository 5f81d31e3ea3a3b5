"""What time does to a single-stream transformer, with the norms' learned scales folded in.

Z-Image's block computes ``x += tanh(gate) * rms(y) * w`` and ``h = rms(x) * w' * (1 + scale)``. For a fixed
time ``tanh(gate) * w`` and ``w' * (1 + scale)`` are vectors, so a closed schedule needs neither the time
embedding nor adaLN at run time: 129 vectors a pass replace 126 million parameters of the published model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class BlockModulation(NamedTuple):
    """Scales of a block's two inputs and gains of its two outputs: each ``[dim]`` or ``[B, 1, dim]``."""

    attention_scale: Tensor
    attention_gain: Tensor
    ffn_scale: Tensor
    ffn_gain: Tensor


class StreamModulation(NamedTuple):
    """All of a transformer's vectors for one pass; ``final_scale`` belongs to the final layer's norm."""

    noise_refiner: tuple[BlockModulation, ...]
    layers: tuple[BlockModulation, ...]
    final_scale: Tensor

    def pack(self) -> Tensor:
        """Stack the vectors of a single time: ``[V, dim]`` fp32, V = 4 * blocks + 1."""
        blocks = (vector for block in (*self.noise_refiner, *self.layers) for vector in block)
        return torch.stack([vector.flatten().float() for vector in (*blocks, self.final_scale)])

    @staticmethod
    def unpack(packed: Tensor, refiners: int) -> StreamModulation:
        """Name the rows of a packed tensor, as views, so that copying into it changes them all."""
        vectors = packed.unbind()
        blocks = [BlockModulation(*vectors[i : i + 4]) for i in range(0, len(vectors) - 1, 4)]
        return StreamModulation(tuple(blocks[:refiners]), tuple(blocks[refiners:]), vectors[-1])


def scales_ahead(blocks: Sequence[BlockModulation], last: Tensor) -> list[Tensor]:
    """For every block the scale that its successor's input is normalised by; ``last`` for the last."""
    return [*(block.attention_scale for block in blocks[1:]), last]
