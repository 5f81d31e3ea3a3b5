"""Everything that can go wrong, told in one of two forms.

Under `/v1` it is OpenAI's: `{"error": {"message", "type", "param", "code"}}`. Elsewhere it is a problem
detail (RFC 9457) with the members `code`, `param` and `request_id` of our own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match

from twinshot_engine.errors import InvalidRequestError
from twinshot_server.access.paths import GENERATE, IMAGES, OPENAI, route_path
from twinshot_server.openai_schemas import ImagesBody
from twinshot_server.scheduling.admission import RefusedError
from twinshot_server.scheduling.jobs import DeadlineError, FailedError, StoppingError
from twinshot_server.scheduling.pool import NotReadyError
from twinshot_server.schemas import GenerateBody
from twinshot_server.validation import describe

_TITLES = {
    "invalid_request": "The request cannot be served as it is",
    "invalid_key": "A valid API key is needed",
    "forbidden": "This key may not do that",
    "not_found": "There is no such thing",
    "method_not_allowed": "The path takes another method",
    "not_acceptable": "Nothing that Accept names can be sent",
    "body_too_large": "The body is too large",
    "body_too_slow": "The body took too long to arrive",
    "cancelled": "The client went away",
    "queue_full": "Too many pictures wait",
    "deadline_unreachable": "It cannot be done in the time allowed",
    "rate_limited": "The key's rate is used up",
    "too_many_at_once": "The key has too many requests running",
    "deadline_exceeded": "It was not done in the time allowed",
    "not_ready": "The server cannot draw at this moment",
    "internal_error": "The server failed",
}
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 408: "body_too_slow", 413: "body_too_large"}
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_BODIES: dict[str, type[BaseModel]] = {GENERATE: GenerateBody, IMAGES: ImagesBody}
_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
_UNEXPECTED = "The server failed unexpectedly; its log says why under this request id."


class ApiError(Exception):
    """A refusal with its HTTP status, a code for programs and a sentence for people."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})


def with_retry(status: int, code: str, message: str, seconds: float) -> ApiError:
    """A refusal that tells when to come back, in whole seconds as HTTP has it and in milliseconds."""
    seconds = max(0.001, min(seconds, 3600.0))
    headers = {"Retry-After": str(math.ceil(seconds)), "Retry-After-Ms": str(math.ceil(seconds * 1000))}
    return ApiError(status, code, message, headers=headers)


def as_api_error(error: BaseException, path: str = GENERATE) -> ApiError:
    """Any failure as what the client of this path is told of it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        message, field = describe(error.errors(), _BODIES.get(path))
        return ApiError(422, "invalid_request", message, param=field)
    for kind, tell in _TELLING.items():
        if isinstance(error, kind):
            return tell(error)
    return ApiError(500, "internal_error", _UNEXPECTED)


def error_body(path: str, request_id: str, error: ApiError) -> dict[str, Any]:
    """What the client of this path reads of the error."""
    if path.startswith(OPENAI):
        kind = _OPENAI_TYPES.get(_openai_status(error.status))
        kind = kind or ("invalid_request_error" if error.status < 500 else "server_error")
        return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}
    return {
        "type": f"urn:twinshot:problem:{error.code}",
        "title": _TITLES.get(error.code, "The request failed"),
        "status": error.status,
        "detail": error.message,
        "code": error.code,
        "param": error.param,
        "request_id": request_id,
    }


def error_response(path: str, request_id: str, error: ApiError) -> Response:
    """The whole answer."""
    is_openai = path.startswith(OPENAI)
    return Response(
        json.dumps(error_body(path, request_id, error)),
        _openai_status(error.status) if is_openai else error.status,
        {"Cache-Control": "no-store", **error.headers},
        "application/json" if is_openai else "application/problem+json",
    )


def install_error_handlers(app: FastAPI) -> None:
    """Make every failure of the application answer in its path's form."""
    for kind in (ApiError, RequestValidationError, *_TELLING, Exception):
        app.add_exception_handler(kind, _handle)


async def _handle(request: Request, error: Exception) -> Response:
    path = route_path(request.scope)
    told = as_api_error(error, path)
    if told.status == 405:
        told = _wrong_method(request)
    request.state.facts["error"] = told.code
    response = error_response(path, request.state.request_id, told)
    if told.code == "internal_error":  # what answers an unexpected failure stands outside of all middleware
        response.headers["X-Request-Id"] = request.state.request_id
    return response


def _openai_status(status: int) -> int:
    return 400 if status == 422 else status


def _param(message: str) -> str | None:
    """The field that a model's own refusal is about: its sentences begin with it."""
    fields = ("size", "seed", "prompt", "adapter", "guidance")
    named = next((field for field in fields if message.startswith(f"The {field}")), None)
    return named or ("steps" if " steps are " in message else None)


def _from_http(error: HTTPException) -> ApiError:
    status = error.status_code
    code = _HTTP_CODES.get(status, "invalid_request" if status < 500 else "internal_error")
    return ApiError(status, code, f"{_explain(error)}.", headers=error.headers)


def _wrong_method(request: Request) -> ApiError:
    """Starlette names the methods of the first route only that has the path."""
    methods = ", ".join(method for method in _METHODS if _takes(request, method))
    return ApiError(405, "method_not_allowed", f"This path takes {methods}.", headers={"Allow": methods})


def _takes(request: Request, method: str) -> bool:
    scope = {**request.scope, "method": method}
    return any(route.matches(dict(scope))[0] is Match.FULL for route in request.app.routes)


def _explain(error: HTTPException) -> str:
    """Starlette's phrase in words that help, where it has only the status's name."""
    if error.status_code == 404:
        return "There is no such path; /docs lists those that exist"
    if error.status_code == 400:
        return "The body cannot be read as JSON"
    return error.detail


_TELLING: dict[type[Exception], Callable[[Any], ApiError]] = {
    InvalidRequestError: lambda error: ApiError(422, "invalid_request", str(error), param=_param(str(error))),
    RefusedError: lambda error: with_retry(429, error.code, str(error), error.retry_after),
    NotReadyError: lambda error: with_retry(503, "not_ready", str(error), error.retry_after),
    StoppingError: lambda error: with_retry(503, "not_ready", str(error), 1.0),
    DeadlineError: lambda error: ApiError(504, "deadline_exceeded", str(error), param="deadline_ms"),
    FailedError: lambda error: ApiError(500, "internal_error", str(error)),
    HTTPException: _from_http,
}
