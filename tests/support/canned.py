"""Answers of a twinshot server, made by hand, and the settings of one that makes them quickly."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx2
from PIL import Image

STUB_ENVIRONMENT = {"TWINSHOT_STUB_SIZES": "64x48,32x32", "TWINSHOT_STUB_MS": "5"}
"""A server process whose engine is the stub: quick and small."""
HEADERS = {
    "Content-Type": "image/png",
    "X-Seed": "7",
    "X-Request-Id": "abc",
    "Server-Timing": "queue;dur=0.1, text;dur=2.0, denoise;dur=70.5, decode;dur=30, encode;dur=1.3, x;dur=1",
}


def image_file(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4), (7, 7, 7)).save(buffer, kind)
    return buffer.getvalue()


class Recorder:
    """Answers every request alike and keeps them."""

    def __init__(self, **answer: Any) -> None:
        self.requests: list[httpx2.Request] = []
        self._answer = {"content": image_file(), "headers": HEADERS} | answer

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        return httpx2.Response(**{"status_code": 200} | self._answer)

    @property
    def body(self) -> Any:
        return json.loads(self.requests[-1].content)
