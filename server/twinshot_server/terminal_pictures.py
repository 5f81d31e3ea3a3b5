"""Pictures on a terminal: kitty's protocol, iTerm's, sixel, or two pixels a character.

Libraries for this ask the terminal while they are imported, need stdin to be one, and know no iTerm; the
protocols themselves are a few lines each:
sw.kovidgoyal.net/kitty/graphics-protocol, iterm2.com/documentation-images.html, and DEC's sixel (VT330/340).
"""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import groupby
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style

from twinshot_server.terminal_query import speaks_sixel

_SHARE_OF_ROWS = 2 / 3
_MOST_COLUMNS = 96
_CHUNK: Final = 4096
_SIXEL_COLORS: Final = 128
_SIXEL_WIDTH: Final = 800


class Show(StrEnum):
    """How pictures are shown; auto is what the terminal can, and nothing where stdout is none."""

    AUTO = "auto"
    KITTY = "kitty"
    ITERM = "iterm"
    SIXEL = "sixel"
    BLOCKS = "blocks"
    NEVER = "never"


def show_picture(pixels: NDArray[np.uint8], how: Show) -> None:
    """Show uint8 [height, width, 3] on stdout."""
    console = Console()
    chosen = find_out(os.environ, console) if how is Show.AUTO else how
    image = Image.fromarray(pixels)
    columns = fitting_columns(image, console)
    match chosen:
        case Show.KITTY:
            sys.stdout.write(as_kitty(image, columns))
        case Show.ITERM:
            sys.stdout.write(as_iterm(image, columns))
        case Show.SIXEL:
            sys.stdout.write(as_sixel(image))
        case Show.BLOCKS:
            console.print(as_blocks(image, columns), end="")
    sys.stdout.flush()


def find_out(environment: Mapping[str, str], console: Console) -> Show:
    """The best protocol that this terminal speaks."""
    if not console.is_terminal or console.is_dumb_terminal:
        return Show.NEVER
    if "TMUX" not in environment:  # which would swallow the first two
        program = environment.get("TERM_PROGRAM", "")
        if environment.get("TERM") in {"xterm-kitty", "xterm-ghostty"} or "KITTY_WINDOW_ID" in environment:
            return Show.KITTY
        if program in {"iTerm.app", "WezTerm"} or environment.get("LC_TERMINAL") == "iTerm2":
            return Show.ITERM
    if speaks_sixel():
        return Show.SIXEL
    return Show.NEVER if console.no_color or console.color_system is None else Show.BLOCKS


def fitting_columns(image: Image.Image, console: Console) -> int:
    """How many characters wide the picture is to be, a character being twice as high as wide."""
    rows = console.height * _SHARE_OF_ROWS
    return max(1, min(console.width, _MOST_COLUMNS, round(2 * rows * image.width / image.height)))


def as_kitty(image: Image.Image, columns: int) -> str:
    """The picture as a PNG in chunks of base64; only the first carries the keys."""
    data = _base64_png(image)
    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    keys = [f"a=T,f=100,q=2,c={columns},", *[""] * (len(chunks) - 1)]
    more = [1] * (len(chunks) - 1) + [0]
    parts = zip(keys, more, chunks, strict=True)
    return "".join(f"\x1b_G{key}m={last};{chunk}\x1b\\" for key, last, chunk in parts) + "\n"


def as_iterm(image: Image.Image, columns: int) -> str:
    """The picture as a PNG in one escape sequence."""
    return f"\x1b]1337;File=inline=1;width={columns};preserveAspectRatio=1:{_base64_png(image)}\a\n"


def as_blocks(image: Image.Image, columns: int) -> Segments:
    """Two pixels a character: an upper half block of one colour on another, as near as rich can come."""
    rows = max(1, round(columns * image.height / image.width / 2))
    pixels = np.asarray(image.resize((columns, 2 * rows), Image.Resampling.BOX))
    segments = []
    for row in range(rows):
        for upper, lower in zip(pixels[2 * row].tolist(), pixels[2 * row + 1].tolist(), strict=True):
            segments.append(Segment("▀", Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower))))
        segments.append(Segment.line())
    return Segments(segments)


def as_sixel(image: Image.Image) -> str:
    """Bands of six rows; in a band each colour paints, over the same columns, one bit a row and character."""
    small = image.copy()
    small.thumbnail((_SIXEL_WIDTH, _SIXEL_WIDTH))
    indexed = small.quantize(_SIXEL_COLORS)
    palette = np.array(indexed.getpalette()).reshape(-1, 3) * 100 // 255
    colors = "".join(f"#{number};2;{r};{g};{b}" for number, (r, g, b) in enumerate(palette))
    bands = "-".join(_bands(np.asarray(indexed)))
    return f'\x1bP0;1q"1;1;{small.width};{small.height}{colors}{bands}\x1b\\\n'


def _bands(indexed: NDArray[np.uint8]) -> Iterator[str]:
    for top in range(0, len(indexed), 6):
        band = indexed[top : top + 6]
        weights = 1 << np.arange(len(band))[:, None]
        yield "$".join(
            f"#{color}{_run_lengths(((band == color) * weights).sum(axis=0) + 63)}"
            for color in np.unique(band)
        )


def _run_lengths(codes: NDArray[np.int64]) -> str:
    runs = ((chr(code), len(list(run))) for code, run in groupby(codes.tolist()))
    return "".join(f"!{length}{sixel}" if length > 3 else sixel * length for sixel, length in runs)


def _base64_png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
