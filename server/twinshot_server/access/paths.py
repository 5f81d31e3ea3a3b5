"""Paths as routes see them, and who may ask for which."""

from __future__ import annotations

from starlette.types import Scope

OPENAI = "/v1/"
"""Under this the API, and the form of errors, are OpenAI's."""
ADMIN = "/admin/"
"""Calls under this need the admin key."""
GENERATE = "/generate"
IMAGES = "/v1/images/generations"
PICTURES = frozenset({GENERATE, IMAGES})
"""A POST to one of these is a request for pictures: counted, limited and logged as such."""

_OPEN = frozenset({"/", "/docs", "/openapi.json", "/livez", "/readyz", "/startupz", "/health", "/metrics"})
_OPEN_FOLDERS = ("/static/", "/static-offline-docs/")


def route_path(scope: Scope) -> str:
    """The path below the one that the application is mounted at."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


def is_open(path: str) -> bool:
    """Whether no key is needed even where there are some."""
    return path in _OPEN or path.startswith(_OPEN_FOLDERS)
