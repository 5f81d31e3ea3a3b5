"""Pictures on a terminal: what is written is decoded again by the protocols' own rules."""

from __future__ import annotations

import base64
import io
import os
import re
import select
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from twinshot_server import terminal_pictures
from twinshot_server.terminal_pictures import (
    Show,
    as_blocks,
    as_iterm,
    as_kitty,
    as_sixel,
    find_out,
    fitting_columns,
)


@pytest.fixture
def image() -> Image.Image:
    """Noise, so that no encoding of it is short: width and height odd and different."""
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (37, 53, 3), np.uint8))


def from_base64(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def test_kitty_receives_the_same_pixels_in_chunks(image: Image.Image) -> None:
    text = as_kitty(image, 20)
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in chunks) + "\n" == text
    assert len(chunks) > 1
    assert max(len(data) for _, data in chunks) <= 4096
    assert [keys for keys, _ in chunks] == ["a=T,f=100,q=2,c=20,m=1", *["m=1"] * (len(chunks) - 2), "m=0"]
    assert from_base64("".join(data for _, data in chunks)).tobytes() == image.tobytes()


def test_a_small_picture_is_one_chunk_for_kitty() -> None:
    assert as_kitty(Image.new("RGB", (2, 2)), 3).startswith("\x1b_Ga=T,f=100,q=2,c=3,m=0;")


def test_iterm_receives_the_same_pixels(image: Image.Image) -> None:
    found = re.fullmatch(
        r"\x1b\]1337;File=inline=1;width=20;preserveAspectRatio=1:([^\a]*)\a\n", as_iterm(image, 20)
    )
    assert found
    assert from_base64(found[1]).tobytes() == image.tobytes()


def decode_sixel(text: str) -> NDArray[np.int64]:
    """Percentages [height, width, 3] that a sixel terminal would paint; -1 where nothing was."""
    found = re.fullmatch(r'\x1bP0;1q"1;1;(\d+);(\d+)(.*)\x1b\\\n', text)
    assert found
    width, height = int(found[1]), int(found[2])
    canvas = np.full((height + 6, width, 3), -1)
    palette: dict[int, tuple[int, ...]] = {}
    x = top = color = 0
    for number, rgb, count, sixel in re.findall(r"#(\d+)(;2;\d+;\d+;\d+)?|(?:!(\d+))?([?-~$-])", found[3]):
        if number:
            color = int(number)
            if rgb:
                palette[color] = tuple(int(value) for value in rgb.split(";")[2:])
        elif sixel == "$":
            x = 0
        elif sixel == "-":
            x, top = 0, top + 6
        else:
            for bit in range(6):
                if (ord(sixel) - 63) >> bit & 1:
                    canvas[top + bit, x : x + int(count or 1)] = palette[color]
            x += int(count or 1)
    assert (canvas[height:] == -1).all()
    return canvas[:height]


def test_sixels_paint_every_pixel_in_its_color() -> None:
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]], np.uint8)
    pixels = colors[np.random.default_rng(1).integers(0, 5, (20, 31))]
    pixels[3:9, 4:25] = 0  # long runs
    assert (decode_sixel(as_sixel(Image.fromarray(pixels))) == pixels.astype(int) * 100 // 255).all()


def test_sixels_of_a_photograph_are_near_it() -> None:
    x, y = np.meshgrid(np.linspace(0, 255, 60), np.linspace(0, 255, 50))
    pixels = np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)
    error = np.abs(decode_sixel(as_sixel(Image.fromarray(pixels))) - pixels / 2.55)
    assert error.mean() < 3


def test_large_pictures_are_reduced_for_sixel() -> None:
    assert decode_sixel(as_sixel(Image.new("RGB", (1600, 400), "red"))).shape == (200, 800, 3)


def test_blocks_are_two_pixels_a_character() -> None:
    pixels = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 8, 7]]], np.uint8)
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, color_system="truecolor")
    console.print(as_blocks(Image.fromarray(pixels), 2), end="")
    cells = re.findall(r"\x1b\[38;2;([\d;]+);48;2;([\d;]+)m▀", written.getvalue())
    assert cells == [("255;0;0", "0;0;255"), ("0;255;0", "9;8;7")]


class Terminal(Console):
    """A console that says of itself what a test wants."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            file=io.StringIO(), **{"force_terminal": True, "color_system": "truecolor", **options}
        )


@pytest.mark.parametrize(
    ("environment", "sixel", "options", "expected"),
    [
        ({}, False, {"force_terminal": False}, Show.NEVER),
        ({"TERM": "xterm-kitty"}, False, {}, Show.KITTY),
        ({"TERM": "xterm-ghostty"}, False, {}, Show.KITTY),
        ({"KITTY_WINDOW_ID": "1"}, True, {}, Show.KITTY),
        ({"TERM_PROGRAM": "iTerm.app"}, True, {}, Show.ITERM),
        ({"LC_TERMINAL": "iTerm2"}, False, {}, Show.ITERM),
        ({"TERM_PROGRAM": "WezTerm"}, False, {}, Show.ITERM),
        ({"TERM_PROGRAM": "iTerm.app", "TMUX": "x"}, True, {}, Show.SIXEL),
        ({"KITTY_WINDOW_ID": "1", "TMUX": "x"}, False, {}, Show.BLOCKS),
        ({"TERM": "xterm"}, True, {}, Show.SIXEL),
        ({"TERM": "xterm"}, False, {}, Show.BLOCKS),
        ({"TERM": "xterm"}, False, {"no_color": True}, Show.NEVER),
        ({"TERM": "xterm"}, False, {"color_system": None}, Show.NEVER),
    ],
)
def test_the_best_protocol_is_found(
    environment: dict[str, str],
    sixel: bool,
    options: dict[str, Any],
    expected: Show,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(terminal_pictures, "speaks_sixel", lambda: sixel)
    assert find_out(environment, Terminal(**options)) is expected


@pytest.mark.parametrize(
    ("size", "screen", "expected"),
    [((100, 100), (200, 30), 40), ((400, 100), (80, 60), 80), ((100, 800), (80, 3), 1)],
)
def test_a_picture_fits_the_screen(size: tuple[int, int], screen: tuple[int, int], expected: int) -> None:
    console = Terminal(width=screen[0], height=screen[1])
    assert fitting_columns(Image.new("RGB", size), console) == expected


ASK = """
import os, termios
os.close(os.open(os.ttyname(0), os.O_RDWR))  # takes the terminal as the session's own
before = termios.tcgetattr(0)
from twinshot_server.terminal_query import speaks_sixel
print("answer:", speaks_sixel(), termios.tcgetattr(0) == before)
"""


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"\x1b[?62;4;22c", "True"),
        (b"\x1b[?1;2c", "False"),
        (b"\x1b[?64;14;40c", "False"),
        (b"typed\x1b[?63;1;4c", "True"),
        (None, "False"),
    ],
)
def test_a_terminal_is_asked_what_it_is(reply: bytes | None, expected: str) -> None:
    controller, terminal = os.openpty()
    options: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    with subprocess.Popen([sys.executable, "-c", ASK], start_new_session=True, **options) as process:
        os.close(terminal)
        seen, limit = b"", time.monotonic() + 30
        while b"answer:" not in seen or not seen.endswith(b"\n"):
            assert time.monotonic() < limit, seen
            if select.select([controller], [], [], 0.1)[0]:
                seen += os.read(controller, 1024)
            if reply and b"\x1b[c" in seen:
                os.write(controller, reply)
                reply = None
        assert process.wait(30) == 0
    os.close(controller)
    assert f"answer: {expected} True" in seen.decode()
    assert seen.count(b"\x1b[c") == 1


def test_without_a_terminal_nobody_is_asked() -> None:
    code = "from twinshot_server.terminal_query import speaks_sixel; print(speaks_sixel())"
    process = subprocess.run(
        [sys.executable, "-c", code], start_new_session=True, capture_output=True, text=True, check=True
    )
    assert process.stdout == "False\n"
