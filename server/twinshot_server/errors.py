"""Everything that can go wrong, told the same way: `{"error": {"type", "message", "param"}}`."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from twinshot_engine.errors import InvalidRequestError
from twinshot_server.schemas import ErrorBody, ErrorDetail
from twinshot_server.validation import describe

_TYPES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


class ApiError(Exception):
    """A refusal with its HTTP status, a type for programs and a sentence for people."""

    def __init__(
        self,
        status: int,
        error_type: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.detail = ErrorDetail(type=error_type, message=message, param=param)
        self.headers = dict(headers or {})


def install_error_handlers(app: FastAPI) -> None:
    """Make every failure of the application answer with an ErrorBody."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(InvalidRequestError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)


def _answer(
    request: Request, status: int, detail: ErrorDetail, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    request.state.facts["error"] = detail.type
    return JSONResponse(ErrorBody(error=detail).model_dump(), status, dict(headers or {}))


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)  # noqa: S101 - Starlette's types say Exception
    return _answer(request, error.status, error.detail, error.headers)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    message, field = describe(error.errors())
    return _answer(request, 422, ErrorDetail(type="invalid_request", message=message, param=field))


async def _invalid_request(request: Request, error: Exception) -> JSONResponse:
    return _answer(request, 422, ErrorDetail(type="invalid_request", message=str(error)))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101
    status = error.status_code
    message = f"{request.method} {request.url.path}: {_explain(error)}."
    error_type = _TYPES.get(status, "invalid_request" if status < 500 else "internal_error")
    return _answer(request, status, ErrorDetail(type=error_type, message=message), error.headers)


def _explain(error: HTTPException) -> str:
    """Starlette's phrase in words that help, where it has only the status's name."""
    if error.status_code == 404:
        return "there is no such path; /docs lists those that exist"
    if error.status_code == 405:
        return f"this path takes {(error.headers or {}).get('Allow', 'another method')}"
    if error.status_code == 400:
        return "the body cannot be read as JSON"
    return error.detail


async def _unexpected(request: Request, _error: Exception) -> JSONResponse:
    message = "The server failed unexpectedly; its log says why under this X-Request-Id."
    return _answer(
        request,
        500,
        ErrorDetail(type="internal_error", message=message),
        {"X-Request-Id": request.state.request_id},
    )
