"""What the server drew."""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from PIL import Image

_STAGE = re.compile(r"(\w+);dur=([0-9.]+)")


@dataclass(frozen=True)
class Timings:
    """Where the request's time went on the server, in milliseconds."""

    queue: float = 0.0
    text: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0
    encode: float = 0.0

    @classmethod
    def parse(cls, header: str) -> Timings:
        """Read a `Server-Timing` header; stages it does not know are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{stage: float(ms) for stage, ms in _STAGE.findall(header) if stage in known})


@dataclass(frozen=True)
class Generated:
    """A picture, as the file that the server sent.

    Attributes:
        bytes: the image file.
        format: `png`, `jpeg` or `webp`.
        seed: draws the same picture again, with the same prompt.
        timings: where the server's time went.
        request_id: names the request in the server's logs.
    """

    bytes: bytes
    format: str
    seed: int
    timings: Timings
    request_id: str

    @cached_property
    def image(self) -> Image.Image:
        """The picture as a Pillow image, decoded at the first use."""
        return Image.open(io.BytesIO(self.bytes))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file as it was sent, whatever its name ends with."""
        Path(path).write_bytes(self.bytes)
