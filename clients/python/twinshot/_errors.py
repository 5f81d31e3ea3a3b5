"""What the client raises.

TwinshotError                      also for how it is used: an address or a setting that cannot be
├── APIConnectionError             no whole answer came: server down, wrong address, connection cut
│   └── APITimeoutError            it took longer than `timeout`
├── APIResponseError               an answer that the API never gives: is it a twinshot server?
└── APIStatusError                 the server refused or failed, and says why
    ├── BadRequestError            400  the body could not be read
    ├── AuthenticationError        401  a valid API key is needed
    ├── PermissionDeniedError      403  this key may not do that
    ├── NotFoundError              404  there is no such path
    ├── UnprocessableEntityError   422  a field is wrong, or the model cannot do what is asked
    ├── RateLimitError             429  too much waits, or the key's limit is reached
    └── InternalServerError        5xx  the server failed, is loading or stops
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Self

from pydantic import BaseModel, ValidationError

_LONGEST_MESSAGE = 2000
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


class TwinshotError(Exception):
    """Anything that went wrong with a call; catch it to catch all.

    Attributes:
        request_id: names the request in the server's logs; it was chosen here, before the first try.

    Example:
        >>> from twinshot import Client, TwinshotError
        >>> try:
        ...     Client().generate("a red car", size="9x9")
        ... except TwinshotError as error:
        ...     print(error)
        The size 9x9 is not supported; supported: 64x48, 32x32.
    """

    def __init__(self, message: str, request_id: str = "") -> None:
        super().__init__(message)
        self.request_id = request_id


class APIConnectionError(TwinshotError):
    """No whole answer came; `__cause__` is httpx2's error.

    Example:
        >>> from twinshot import APIConnectionError, Client
        >>> try:
        ...     Client("http://127.0.0.1:1", max_retries=0).generate("a red car")
        ... except APIConnectionError as error:
        ...     print(error)
        no answer from http://127.0.0.1:1: [Errno 111] Connection refused
    """


class APITimeoutError(APIConnectionError):
    """The answer took longer than `timeout`.

    Example:
        >>> from twinshot import APITimeoutError, Client
        >>> hurried = Client(timeout=0.001, max_retries=0)
        >>> try:
        ...     hurried.generate("a red car")
        ... except APITimeoutError as error:
        ...     print(str(error).partition(" from ")[0])
        no answer
    """


class APIResponseError(TwinshotError):
    """An answer came that the API never gives; something else may listen there.

    Example:
        >>> import httpx2
        >>> from twinshot import APIResponseError, Client
        >>> page = httpx2.MockTransport(lambda request: httpx2.Response(200, html="<p>Welcome"))
        >>> try:
        ...     Client("http://intranet", transport=page).generate("a red car")
        ... except APIResponseError as error:
        ...     print(error)
        http://intranet/generate answered with text/html instead of an image; is it a twinshot server?
    """


@dataclass(frozen=True)
class Answer:
    """A whole answer of a server: what errors and results are read from."""

    url: str
    status: int
    reason: str
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)
    request_id: str

    @property
    def media_type(self) -> str:
        """What the content is said to be."""
        return self.headers.get("content-type", "").partition(";")[0].strip() or "nothing known"

    def unexpected(self, wanted: str) -> APIResponseError:
        """The complaint that this is not `wanted`."""
        said = f"{self.url} answered with {self.media_type} instead of {wanted}; is it a twinshot server?"
        return APIResponseError(said, self.request_id)


class APIStatusError(TwinshotError):
    """The server refused or failed; the message is its own sentence.

    Attributes:
        status: the HTTP status code.
        code: a word for programs, such as `invalid_request` or `queue_full`; None if a proxy answered.
        param: the field at fault, where there is one.
        retry_after: seconds to wait before another try, where the server says so.

    Example:
        >>> from twinshot import APIStatusError, Client
        >>> try:
        ...     Client().generate("a red car", steps=3)
        ... except APIStatusError as error:
        ...     print(error.status, error.code, error.param)
        422 invalid_request steps
    """

    def __init__(self, answer: Answer) -> None:
        problem = _read_problem(answer)
        super().__init__(problem.detail[:_LONGEST_MESSAGE], answer.request_id)
        self.status = answer.status
        self.code = problem.code
        self.param = problem.param
        self.retry_after = read_retry_after(answer.headers)
        self._answer = answer

    def __reduce__(self) -> tuple[type[Self], tuple[Answer]]:
        return type(self), (self._answer,)


class BadRequestError(APIStatusError):
    """400: the body could not be read.

    Example:
        >>> from twinshot import APIStatusError, BadRequestError
        >>> issubclass(BadRequestError, APIStatusError)
        True
    """


class AuthenticationError(APIStatusError):
    """401: a valid API key is needed, as `api_key` or in `TWINSHOT_API_KEY`.

    Example:
        >>> from twinshot import AuthenticationError, Client
        >>> try:
        ...     Client(guarded_url).generate("a red car")
        ... except AuthenticationError as error:
        ...     print(error)
        Send a valid API key as 'Authorization: Bearer <key>'.
    """


class PermissionDeniedError(APIStatusError):
    """403: this key may not do that.

    Example:
        >>> from twinshot import APIStatusError, PermissionDeniedError
        >>> issubclass(PermissionDeniedError, APIStatusError)
        True
    """


class NotFoundError(APIStatusError):
    """404: there is no such path; the address may be that of another server.

    Example:
        >>> from twinshot import Client, NotFoundError
        >>> try:
        ...     Client(f"{Client().base_url}/elsewhere").generate("a red car")
        ... except NotFoundError as error:
        ...     print(error)
        There is no such path; /docs lists those that exist.
    """


class UnprocessableEntityError(APIStatusError):
    """422: a field is wrong, or the model cannot do what is asked; `param` names the field.

    Example:
        >>> from twinshot import Client, UnprocessableEntityError
        >>> try:
        ...     Client().generate("")
        ... except UnprocessableEntityError as error:
        ...     print(error.param, "|", error)
        prompt | prompt is empty; say in words what to draw.
    """


class RateLimitError(APIStatusError):
    """429: too much waits, or the key's limit is reached; raised once the retries are used up.

    Example:
        >>> from twinshot import Client, RateLimitError
        >>> try:
        ...     Client(max_retries=0).generate("a red car", deadline_ms=1)
        ... except RateLimitError as error:
        ...     print(error.code)
        deadline_unreachable
    """


class InternalServerError(APIStatusError):
    """5xx: the server failed, is loading or stops; raised once the retries are used up.

    Example:
        >>> from twinshot import Client, InternalServerError
        >>> try:
        ...     Client(max_retries=0).generate("!fail")  # the server of these examples fails at that
        ... except InternalServerError as error:
        ...     print(error.status, error.code)
        500 internal_error
    """


_CLASSES: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


def status_error(answer: Answer) -> APIStatusError:
    """The error that fits the answer's status."""
    fallback = InternalServerError if answer.status >= 500 else APIStatusError
    return _CLASSES.get(answer.status, fallback)(answer)


class _Problem(BaseModel):
    """What is read of a problem detail (RFC 9457)."""

    detail: str
    code: str | None = None
    param: str | None = None


class _OpenAIProblem(BaseModel):
    message: str
    code: str | None = None
    param: str | None = None


class _OpenAIBody(BaseModel):
    """The form of errors under `/v1`."""

    error: _OpenAIProblem


def _read_problem(answer: Answer) -> _Problem:
    """The problem, or the plain status if something other than twinshot answered."""
    try:
        return _Problem.model_validate_json(answer.content)
    except ValidationError:
        pass
    try:
        told = _OpenAIBody.model_validate_json(answer.content).error
    except ValidationError:
        return _Problem(detail=f"{answer.url} answered {answer.status} {answer.reason}".rstrip())
    return _Problem(detail=told.message, code=told.code, param=told.param)


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `Retry-After-Ms`, or from `Retry-After` as seconds or a date; else None."""
    milliseconds, after = headers.get("retry-after-ms", ""), headers.get("retry-after", "")
    if _NUMBER.fullmatch(milliseconds):
        return float(milliseconds) / 1000
    if _NUMBER.fullmatch(after):
        return float(after)
    try:
        seconds = parsedate_to_datetime(after).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
