"""Asks the terminal what it is, by its primary device attributes (DA1)."""

from __future__ import annotations

import os
import re
import select
import sys
import time

_SECONDS = 0.3
_ANSWER = re.compile(rb"\x1b\[\?([\d;]*)c")
_SIXEL = b"4"


def speaks_sixel() -> bool:
    """Whether the controlling terminal says that it draws sixels; one without an answer does not."""
    if sys.platform == "win32":
        return False
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return _SIXEL in _ask(terminal).split(b";")
    finally:
        os.close(terminal)


def _ask(terminal: int) -> bytes:
    """The attributes as the terminal lists them, or nothing."""
    import termios
    import tty

    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal, termios.TCSANOW)  # no echo, and no waiting for the end of a line
        os.write(terminal, b"\x1b[c")
        return _read_answer(terminal)
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


def _read_answer(terminal: int) -> bytes:
    received, limit = b"", time.monotonic() + _SECONDS
    while (left := limit - time.monotonic()) > 0 and select.select([terminal], [], [], left)[0]:
        received += os.read(terminal, 64)
        if found := _ANSWER.search(received):
            return found[1]
    return b""
