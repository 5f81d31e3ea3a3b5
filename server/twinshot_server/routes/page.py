"""The page at `/`: a prompt, a picture, and where the milliseconds went."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

router = APIRouter()

_STATIC = Path(__file__).parent.parent / "static"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)


@router.get("/", include_in_schema=False)
def page() -> FileResponse:
    """The page. It loads nothing from elsewhere, and its policy makes the browser see to that."""
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
    return FileResponse(_STATIC / "index.html", headers=headers)


def mount_static(app: FastAPI) -> None:
    """Serve the page's script and style under `/static`."""
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
