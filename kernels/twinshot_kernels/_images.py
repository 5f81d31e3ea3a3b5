"""How the kernels that work on channels-last images divide them, and in which order they read.

An image is read in tiles, as many at a time as programs fit the GPU at once: tile ``n`` belongs to program
``n mod programs``, and all programs move through the image together. A kernel that begins where the one
before it ended then finds some 30 MB in an H100's L2 cache that it need not fetch. Convolutions write
forwards; so statistics run backwards, and norms forwards again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from twinshot_kernels._triton import triton

ELEMENTS_PER_TILE = 4096
NUM_WARPS = 8
# Tiles on their way while one is worked on, and that one.
STAGES = 4


class ImageTiles(NamedTuple):
    """Each program reads ``TILES`` tiles; a tile is ``ROWS`` pixels with all their channels."""

    programs: int
    constants: dict[str, Any]

    @classmethod
    def of(cls, x: Tensor, max_programs: int, least: int = 1) -> ImageTiles:
        """Divide each image of ``x`` ``[B, C, H, W]`` among at most ``max_programs`` programs.

        A tile has at least ``least`` rows and room for as many channels.
        """
        _, channels, height, width = x.shape
        block = max(least, triton.next_power_of_2(channels))
        rows = max(least, ELEMENTS_PER_TILE // block)
        count = triton.cdiv(height * width, rows)
        programs = min(count, max_programs)
        constants = {
            "TILES": triton.cdiv(count, programs),
            "ROWS": rows,
            "BLOCK": block,
            "STAGES": STAGES,
            "num_warps": NUM_WARPS,
        }
        return cls(programs, constants)
