"""The client: one method for each thing the server does."""

from __future__ import annotations

import os
from importlib.metadata import version
from types import TracebackType
from typing import Any, Literal, Self

import httpx2

from twinshot._errors import APIConnectionError, APIStatusError
from twinshot._generated import Generated, Timings

DEFAULT_BASE_URL = "http://127.0.0.1:8000"

Format = Literal["png", "jpeg", "webp"]


class Client:
    """A connection to one server, kept open between requests. Threads may share it.

    Args:
        base_url: where the server listens; else `TWINSHOT_BASE_URL`, else http://127.0.0.1:8000.
        timeout: longest wait for an answer, in seconds; connecting may take 5 of them.
        transport: for tests, what carries requests instead of the network.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        timeout: float = 30.0,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.base_url = base_url or os.environ.get("TWINSHOT_BASE_URL") or DEFAULT_BASE_URL
        self._http = httpx2.Client(
            base_url=self.base_url,
            timeout=httpx2.Timeout(timeout, connect=min(timeout, 5.0)),
            headers={"User-Agent": f"twinshot-python/{version('twinshot')}"},
            transport=transport,
        )

    def generate(
        self,
        prompt: str,
        *,
        seed: int | None = None,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        format: Format | None = None,  # noqa: A002 - the API's own word
        quality: int | None = None,
    ) -> Generated:
        """Draw one picture; what is not given is the server's choice.

        Raises:
            APIStatusError: the server refused (its sentence says why) or failed.
            APIConnectionError: no answer came.
        """
        given = {
            "prompt": prompt,
            "seed": seed,
            "width": width,
            "height": height,
            "steps": steps,
            "format": format,
            "quality": quality,
        }
        response = self._post(
            "/generate", {name: value for name, value in given.items() if value is not None}
        )
        return Generated(
            bytes=response.content,
            format=response.headers["Content-Type"].removeprefix("image/"),
            seed=int(response.headers["X-Seed"]),
            timings=Timings.parse(response.headers.get("Server-Timing", "")),
            request_id=response.headers.get("X-Request-Id", ""),
        )

    def close(self) -> None:
        """Close the connections; `with Client() as client:` does it by itself."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _post(self, path: str, body: dict[str, Any]) -> httpx2.Response:
        try:
            response = self._http.post(path, json=body, headers={"Accept": "image/*"})
        except httpx2.TransportError as error:
            reason = str(error) or type(error).__name__
            raise APIConnectionError(f"no answer from {self.base_url}: {reason}") from error
        if not response.is_success:
            raise APIStatusError(response)
        return response
