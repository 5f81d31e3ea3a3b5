"""What the client raises.

TwinshotError
├── APIConnectionError      no answer: server down, wrong address, timeout
└── APIStatusError          an answer that says no
"""

from __future__ import annotations

import httpx2
from pydantic import BaseModel, ValidationError


class TwinshotError(Exception):
    """Anything that went wrong between here and the server."""


class APIConnectionError(TwinshotError):
    """No answer came from the server; `__cause__` is httpx2's error."""


class APIStatusError(TwinshotError):
    """The server refused or failed.

    Attributes:
        status: the HTTP status code.
        code: a word for programs, such as `invalid_request` or `queue_full`; None if a proxy answered.
        param: the field at fault, where there is one.
        request_id: names the request in the server's logs.
        retry_after: seconds to wait before another try, where the server says so.
    """

    def __init__(self, response: httpx2.Response) -> None:
        detail = _read_detail(response)
        super().__init__(detail.detail)
        self.status = response.status_code
        self.code = detail.code
        self.param = detail.param
        self.request_id = response.headers.get("X-Request-Id")
        retry_after = response.headers.get("Retry-After", "")
        self.retry_after = int(retry_after) if retry_after.isdecimal() else None


class _Problem(BaseModel):
    """What is read of a problem detail (RFC 9457)."""

    detail: str
    code: str | None = None
    param: str | None = None


def _read_detail(response: httpx2.Response) -> _Problem:
    """The problem, or the plain status if something other than twinshot answered."""
    try:
        return _Problem.model_validate_json(response.content)
    except ValidationError:
        return _Problem(detail=f"{response.url} answered {response.status_code} {response.reason_phrase}")
