"""The page at `/`: type, and see. It is made of files that browsers read as they are."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

router = APIRouter()

_STATIC = Path(__file__).parent.parent / "static"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'"
)
_FRESH = {"Cache-Control": "no-cache"}
"""Ask whether a file has changed before using it again: a page never mixes two versions of the server."""


class FreshFiles(StaticFiles):
    """Static files that browsers keep, but not without asking."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file, or 304 if the browser's copy is still right."""
        response = await super().get_response(path, scope)
        response.headers.update(_FRESH)
        return response


@router.get("/", include_in_schema=False)
def page() -> FileResponse:
    """The page. It loads nothing from elsewhere, and its policy makes the browser see to that."""
    return FileResponse(_STATIC / "index.html", headers={"Content-Security-Policy": _POLICY, **_FRESH})


def mount_static(app: FastAPI) -> None:
    """Serve the page's scripts and style under `/static`."""
    app.mount("/static", FreshFiles(directory=_STATIC), name="static")
