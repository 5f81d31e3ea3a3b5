"""Which failures are worth another try, and how long to wait before it."""

from __future__ import annotations

import random

from twinshot._errors import APIConnectionError, APIStatusError, TwinshotError

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 8.0
LONGEST_ASKED = 60.0
"""Seconds. A server that asks for more is not waited for: that is for the caller to decide."""

_STATUSES = {408, 409, 429}


class Retries:
    """The retries of one call.

    Pauses double from half a second to 8, less up to a quarter by chance, so that clients that failed
    together do not come back together. Where the server says when to come back, the pause is that, and up to
    a quarter more.
    """

    def __init__(self, most: int) -> None:
        self._left = most
        self._pause = FIRST_PAUSE

    def pause(self, error: TwinshotError) -> float | None:
        """Seconds before the next try, or None if there is to be none."""
        asked = error.retry_after if isinstance(error, APIStatusError) else None
        if self._left == 0 or not is_passing(error) or (asked or 0.0) > LONGEST_ASKED:
            return None
        self._left -= 1
        pause, self._pause = self._pause, min(self._pause * 2, LONGEST_PAUSE)
        return pause * random.uniform(0.75, 1) if asked is None else asked * random.uniform(1, 1.25)


def is_passing(error: TwinshotError) -> bool:
    """Whether the same request may succeed later: nobody answered, it was too much, or the server failed.

    A deadline that has passed stays passed, so 504 with `deadline_exceeded` is final.
    """
    if isinstance(error, APIStatusError):
        return error.status in _STATUSES or (error.status >= 500 and error.code != "deadline_exceeded")
    return isinstance(error, APIConnectionError)
