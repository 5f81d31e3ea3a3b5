"""The OpenAPI document, where it needs more than the routes say."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from twinshot_server.access.paths import ADMIN, OPENAI, is_open

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, if the server has any."},
    "admin": {"type": "http", "scheme": "bearer", "description": "The admin key."},
}


def describe_with_keys(app: FastAPI) -> None:
    """Have the application's document tell which calls take keys, and what `/v1` answers to bad input."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = original()
            document.setdefault("components", {})["securitySchemes"] = _SCHEMES
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    _complete(path, operation)
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(path: str, operation: dict[str, Any]) -> None:
    if path.startswith(ADMIN):
        operation["security"] = [{"admin": []}]
    elif not is_open(path):
        operation["security"] = [{}, {"bearer": []}]
    if path.startswith(OPENAI):
        operation["responses"].pop("422", None)  # FastAPI's own; here it is a 400, as OpenAI has it
