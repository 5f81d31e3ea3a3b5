"""Ctrl-C and SIGTERM in the middle of a run: noticed at once, obeyed at the end of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from twinshot_distill.report import say

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Interruption:
    """Whether the run was asked to end, and by which signal."""

    asked: int = 0

    def obey(self) -> NoReturn:
        """End as the signal would have: KeyboardInterrupt, or exit code 143 for SIGTERM."""
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.asked)


@contextmanager
def noticed(*, speaks: bool) -> Iterator[Interruption]:
    """Only note the first signal; a second one ends the process as ever.

    On other threads than the main one, Python handles no signals: nothing is noticed. A signal that
    the process was started to ignore, as shells have it for what runs in the background, stays ignored.

    Args:
        speaks: whether this process says what it does.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {n: handler for n in _SIGNALS if (handler := signal.getsignal(n)) != signal.SIG_IGN}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _frame: FrameType | None) -> None:
        interruption.asked = number
        restore()
        if speaks:
            say(f"{signal.Signals(number).name}: finishing the step and saving it; once more ends at once")

    try:
        for number in before:
            signal.signal(number, note)
        yield interruption
    finally:
        restore()
