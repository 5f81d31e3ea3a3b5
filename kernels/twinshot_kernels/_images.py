"""How the kernels that work on channels-last images divide them: chunks of pixels, each read in tiles."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from twinshot_kernels._triton import triton

ELEMENTS_PER_TILE = 4096
NUM_WARPS = 8


class ImageTiles(NamedTuple):
    """One program reads a chunk of ``TILES`` tiles; a tile is ``ROWS`` pixels with all their channels."""

    chunks: int
    chunk_pixels: int
    constants: dict[str, Any]

    @classmethod
    def of(cls, x: Tensor, max_chunks: int) -> ImageTiles:
        """Divide each image of ``x`` ``[B, C, H, W]`` into at most ``max_chunks`` chunks."""
        _, channels, height, width = x.shape
        block = triton.next_power_of_2(channels)
        rows = max(1, ELEMENTS_PER_TILE // block)
        count = triton.cdiv(height * width, rows)
        tiles = triton.cdiv(count, max_chunks)
        constants = {"TILES": tiles, "ROWS": rows, "BLOCK": block, "num_warps": NUM_WARPS}
        return cls(triton.cdiv(count, tiles), tiles * rows, constants)
