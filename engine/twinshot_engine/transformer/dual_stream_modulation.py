"""What time does to a dual-stream transformer: scales, shifts and gates of both streams in every block.

For a fixed time all of them are vectors, so a closed schedule needs neither time embedders nor adaLN at run
time: 722 vectors a pass replace 6.8 billion parameters of the published model, a third of it.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

VECTORS_PER_STREAM = 6
VECTORS_PER_BLOCK = 2 * VECTORS_PER_STREAM
_SCALES_OF_STREAM = (1, 4)


class HalfModulation(NamedTuple):
    """Of one stream in one block, each ``[dim]``, in the order in which adaLN makes them.

    Scales are ``1 + raw``: the norm is multiplied by them as they are.
    """

    attention_shift: Tensor
    attention_scale: Tensor
    attention_gain: Tensor
    ffn_shift: Tensor
    ffn_scale: Tensor
    ffn_gain: Tensor


class Affine(NamedTuple):
    """Scale and shift behind a norm."""

    scale: Tensor
    shift: Tensor


class DualStreamModulation(NamedTuple):
    """All of a transformer's vectors for one pass; ``final`` belongs to the last norm of the image."""

    image: tuple[HalfModulation, ...]
    text: tuple[HalfModulation, ...]
    final: Affine

    @staticmethod
    def unpack(packed: Tensor) -> DualStreamModulation:
        """Name the vectors of a row ``[12 * blocks + 2, dim]`` of the table, as views."""
        vectors = packed.unbind()
        halves = [
            HalfModulation(*vectors[first : first + VECTORS_PER_STREAM])
            for first in range(0, len(vectors) - 2, VECTORS_PER_STREAM)
        ]
        return DualStreamModulation(tuple(halves[::2]), tuple(halves[1::2]), Affine(*vectors[-2:]))


def scale_rows(blocks: int) -> list[int]:
    """Tell which vectors of a packed row are scales."""
    streams = range(0, blocks * VECTORS_PER_BLOCK, VECTORS_PER_STREAM)
    return [*(first + place for first in streams for place in _SCALES_OF_STREAM), blocks * VECTORS_PER_BLOCK]
