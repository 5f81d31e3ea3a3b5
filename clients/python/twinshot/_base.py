"""What both clients share: settings, requests and the reading of answers. The clients only send."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, Self, TypeVar

import httpx2

from twinshot._calls import Call
from twinshot._errors import (
    Answer,
    APIConnectionError,
    APIResponseError,
    APITimeoutError,
    TwinshotError,
    status_error,
)

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
CONNECT_SECONDS = 5.0
LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
"""No call waits here for another; how many there are at a time is the caller's choice."""
MAX_ANSWER_BYTES = 256 * 2**20
"""The largest answer that is taken into memory; a 4096x4096 PNG without any compression has 48 MiB."""

T = TypeVar("T")
Progress = Callable[[int, int], object]
"""Is called with (done, total) after each picture of `generate_many`."""

_USER_AGENT = f"twinshot-python/{version('twinshot')}"


@dataclass(frozen=True)
class Config:
    """What `with_options` changes, checked. Raises TwinshotError."""

    base_url: httpx2.URL
    api_key: str | None = field(repr=False)
    timeout: float
    max_retries: int

    def __post_init__(self) -> None:
        if self.base_url.scheme not in {"http", "https"} or not self.base_url.host:
            raise TwinshotError(f"base_url is {self.shown!r}; it must look like {DEFAULT_BASE_URL}")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise TwinshotError("api_key has characters that no key has; is there a line break in it?")
        if not 0 < self.timeout < math.inf:
            raise TwinshotError(f"timeout is {self.timeout}; it must be a number of seconds above 0")
        if self.max_retries < 0:
            raise TwinshotError(f"max_retries is {self.max_retries}; it must be 0 or more")

    @property
    def shown(self) -> str:
        """The address for people to read, without a password."""
        return str(self.base_url.copy_with(userinfo=b"")).rstrip("/")


class Allowance:
    """What one answer may cost: bytes, and seconds from now."""

    def __init__(self, seconds: float, call: Call[Any]) -> None:
        self._deadline = time.monotonic() + seconds
        self._bytes = MAX_ANSWER_BYTES
        self._call = call

    def take(self, chunk: bytes) -> bytes:
        """The chunk, if it may still come. Raises APITimeoutError or APIResponseError."""
        self._bytes -= len(chunk)
        if self._bytes < 0:
            message = f"{self._call.path} answered with more than {MAX_ANSWER_BYTES} bytes"
            raise APIResponseError(message, self._call.request_id)
        if time.monotonic() > self._deadline:
            raise TimeoutError
        return chunk


class BaseClient:
    """Settings, and everything about requests and answers that needs no waiting."""

    _http: httpx2.Client | httpx2.AsyncClient
    _config: Config

    def _configure(
        self, base_url: str | None, api_key: str | None, timeout: float, max_retries: int
    ) -> Config:
        address = base_url or os.environ.get("TWINSHOT_BASE_URL") or DEFAULT_BASE_URL
        key = api_key or os.environ.get("TWINSHOT_API_KEY") or None
        try:
            url = httpx2.URL(address)
        except httpx2.InvalidURL as error:
            raise TwinshotError(f"base_url is no address: {error}") from error
        self._config = Config(url, key, timeout, max_retries)
        return self._config

    @property
    def base_url(self) -> str:
        """Where the server listens.

        Example:
            >>> from twinshot import Client
            >>> Client("http://127.0.0.1:8000").base_url
            'http://127.0.0.1:8000'
        """
        return self._config.shown

    def with_options(
        self, *, api_key: str | None = None, timeout: float | None = None, max_retries: int | None = None
    ) -> Self:
        """A client with other settings on the same connections, which closing either one closes.

        Example:
            >>> from twinshot import Client
            >>> client = Client()
            >>> client.with_options(timeout=5, max_retries=0).generate("a red car").image.size
            (64, 48)
        """
        given = {"api_key": api_key, "timeout": timeout, "max_retries": max_retries}
        twin = copy.copy(self)
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        twin._config = replace(self._config, **changes)  # noqa: SLF001 - it is of this class
        return twin

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    @property
    def _timeout(self) -> httpx2.Timeout:
        seconds = self._config.timeout
        return httpx2.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))

    def _build(self, call: Call[Any]) -> httpx2.Request:
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # images do not shrink
            "User-Agent": _USER_AGENT,
            "X-Request-Id": call.request_id,
            **call.headers,
        }
        if self._config.api_key is not None:
            headers["Authorization"] = f"Bearer {self._config.api_key}"
        return self._http.build_request(
            call.method, call.path, content=call.body, headers=headers, timeout=self._timeout
        )

    @contextmanager
    def _telling(self, call: Call[Any]) -> Iterator[None]:
        """Raise httpx2's errors as ours."""
        address = self._config.shown
        try:
            yield
        except httpx2.ConnectTimeout as error:
            message = f"no connection to {address} within {self._timeout.connect:g} s"
            raise APITimeoutError(message, call.request_id) from error
        except (httpx2.TimeoutException, TimeoutError) as error:
            message = f"no answer from {address} within {self._config.timeout:g} s"
            raise APITimeoutError(message, call.request_id) from error
        except httpx2.RequestError as error:
            reason = str(error) or type(error).__name__
            raise APIConnectionError(f"no answer from {address}: {reason}", call.request_id) from error

    def _answer(self, call: Call[Any], response: httpx2.Response, content: bytes = b"") -> Answer:
        return Answer(
            url=f"{self._config.shown}{call.path.partition('?')[0]}",
            status=response.status_code,
            reason=response.reason_phrase,
            headers=response.headers,
            content=content,
            request_id=response.headers.get("X-Request-Id", call.request_id),
        )

    def _result(self, call: Call[T], answer: Answer) -> T:
        """What the answer says. Raises APIStatusError or APIResponseError."""
        if not call.is_answered_by(answer.status):
            raise status_error(answer)
        return call.read(answer)
