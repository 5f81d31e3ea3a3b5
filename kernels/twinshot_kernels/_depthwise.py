"""Depthwise convolutions inside kernels: a program walks down a strip of pairs of columns.

Each row is read once for the output rows that it reaches, which are kept as sums in registers, and each value
once for both columns of a pair. So a neighbourhood of 5 by 5 takes 3 loads instead of 25, and one of 3 by 3
takes 2 instead of 9.
"""

from __future__ import annotations

from twinshot_kernels._activation import silu
from twinshot_kernels._triton import jit, tl


@jit
def load_taps(
    taps: tl.tensor, channel: tl.tensor, stride: int, kept: tl.tensor, COUNT: tl.constexpr
) -> tl.tuple:
    """Load ``[COUNT, C]`` taps of some channels, one after another."""
    loaded: tl.tuple = ()
    for tap in tl.static_range(COUNT):
        weight = tl.load(taps + tap * stride + channel, mask=kept, other=0.0)
        loaded = loaded + (weight.to(tl.float32),)
    return loaded


@jit
def count_if(holds: tl.tensor, count: int) -> tl.tensor:
    """Count the channels of a row, ``count`` or none, to compare a block of channels with.

    A scalar mask that met the block's own would do, but Triton 3.9's interpreter refuses what they make.
    """
    return tl.where(holds, count, 0)


@jit
def _add(
    sums: tl.tuple, value: tl.tensor, taps: tl.tuple, COLUMN: tl.constexpr, SIDE: tl.constexpr
) -> tl.tuple:
    """Add a value to the rows of output that it reaches, of which it is the lowest neighbour of the first."""
    added: tl.tuple = ()
    for place in tl.static_range(SIDE):
        added = added + (sums[place] + value * taps[(SIDE - 1 - place) * SIDE + COLUMN],)
    return added


@jit
def add_row(
    even: tl.tuple,
    odd: tl.tuple,
    line: tl.tensor,
    column: tl.tensor,
    channel: tl.tensor,
    width: int,
    stride: int,
    inside: tl.tensor,
    taps: tl.tuple,
    SIDE: tl.constexpr,
    ACTIVATE: tl.constexpr,
    APPROXIMATE: tl.constexpr,
) -> tuple[tl.tuple, tl.tuple]:
    """Add one row of an image to the sums of the ``SIDE`` rows of output that it reaches, highest first.

    Args:
        even: sums of the columns ``column``.
        odd: sums of the columns right of them.
        line: where the row begins.
        column: even columns, in the shape of the sums.
        channel: likewise.
        width: of the image.
        stride: from a pixel to the next.
        inside: which channels there are, none if the row is outside of the image.
        taps: see :func:`load_taps`.
        SIDE: of a neighbourhood, odd.
        ACTIVATE: whether values are activated by SiLU.
        APPROXIMATE: see :mod:`~twinshot_kernels._activation`.
    """
    for shift in tl.static_range(SIDE + 1):
        at = column + (shift - SIDE // 2)
        value = tl.load(line + at * stride + channel, mask=inside & (at >= 0) & (at < width), other=0.0)
        value = value.to(tl.float32)
        if ACTIVATE:
            value = silu(value, APPROXIMATE)
        if shift < SIDE:
            even = _add(even, value, taps, shift, SIDE)
        if shift > 0:
            odd = _add(odd, value, taps, shift - 1, SIDE)
    return even, odd
