"""How much one caller may ask: a rate with bursts, and a number at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from twinshot_server.errors import ApiError, with_retry


class Limits:
    """A token bucket that gains `rate` tokens a second up to `burst`, and a count of requests in work.

    None means no limit.
    """

    def __init__(
        self,
        rate: float | None,
        burst: int,
        concurrency: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._concurrency = concurrency
        self._clock = clock
        self._tokens = float(burst)
        self._counted = clock()
        self._running = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count one request as long as it is in work. Raises ApiError 429."""
        self._check_concurrency()
        self._take_token()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def _check_concurrency(self) -> None:
        if self._concurrency is not None and self._running >= self._concurrency:
            message = f"This key has {self._running} requests running; {self._concurrency} are allowed."
            raise with_retry(429, "too_many_at_once", message, 1.0)

    def _take_token(self) -> None:
        if self._rate is None:
            return
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._counted) * self._rate)
        self._counted = now
        if self._tokens < 1:
            raise self._too_fast(self._rate)
        self._tokens -= 1

    def _too_fast(self, rate: float) -> ApiError:
        message = f"This key may ask {rate:g} times a second, {self._burst} at once."
        return with_retry(429, "rate_limited", message, (1 - self._tokens) / rate)
