"""Where training says how it goes: one line at a time on stderr, flushed, so that a log file is live."""

from __future__ import annotations

import sys


def say(words: str) -> None:
    """Print a line at once."""
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()
