"""What the server drew."""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from urllib.parse import parse_qsl

from PIL import Image

_STAGE = re.compile(r"(\w+);dur=([0-9]+(?:\.[0-9]+)?)")
_BEGINNINGS = {
    "png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "jpeg": re.compile(rb"\xff\xd8\xff"),
    "webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
}


def is_image(content: bytes) -> bool:
    """Whether this begins as an image file that a server sends."""
    return any(beginning.match(content) for beginning in _BEGINNINGS.values())


@dataclass(frozen=True)
class Timings:
    """Where the request's time went on the server, in milliseconds.

    Example:
        >>> from twinshot import Client
        >>> timings = Client().generate("a red car").timings
        >>> timings.denoise > 0
        True
    """

    queue: float = 0.0
    text: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0
    encode: float = 0.0

    @classmethod
    def parse(cls, header: str) -> Timings:
        """Read a `Server-Timing` header; stages it does not know are left out.

        Example:
            >>> from twinshot import Timings
            >>> Timings.parse("queue;dur=0.2, denoise;dur=70.1, cache;dur=3").denoise
            70.1
        """
        known = {each.name for each in fields(cls)}
        return cls(**{stage: float(ms) for stage, ms in _STAGE.findall(header) if stage in known})


@dataclass(frozen=True)
class UnknownWord:
    """A word of the prompt that the model was never taught.

    Attributes:
        word: as the prompt has it.
        nearest: the known words that were drawn in its place, or None where nothing is alike.

    Example:
        >>> from twinshot import Client
        >>> Client().generate("a red car").unknown_words
        ()
    """

    word: str
    nearest: str | None

    @classmethod
    def parse(cls, header: str) -> tuple[UnknownWord, ...]:
        """Read an `X-Unknown-Words` header.

        Example:
            >>> from twinshot import UnknownWord
            >>> UnknownWord.parse("lions=tigers&xyz=")
            (UnknownWord(word='lions', nearest='tigers'), UnknownWord(word='xyz', nearest=None))
        """
        return tuple(
            cls(word, nearest or None) for word, nearest in parse_qsl(header, keep_blank_values=True)
        )


@dataclass(frozen=True)
class Picture:
    """An image file as the server sent it: what `Generated` and `Frame` have in common.

    Attributes:
        bytes: the image file.
        seed: draws the same picture again, with the same prompt, size and steps.

    Example:
        >>> from twinshot import Client, Picture
        >>> isinstance(Client().generate("a red car"), Picture)
        True
    """

    bytes: bytes = field(repr=False)
    seed: int

    @property
    def format(self) -> str:
        """`png`, `jpeg` or `webp`, from the file's first bytes.

        Example:
            >>> from twinshot import Client
            >>> Client().generate("a red car", format="webp").format
            'webp'
        """
        return next(name for name, beginning in _BEGINNINGS.items() if beginning.match(self.bytes))

    @cached_property
    def image(self) -> Image.Image:
        """The picture as a Pillow image, decoded at the first use. Raises OSError if the file is broken.

        Example:
            >>> from twinshot import Client
            >>> Client().generate("a red car").image.size
            (64, 48)
        """
        image = Image.open(io.BytesIO(self.bytes))
        image.load()
        return image

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file as it was sent, whatever its name ends with; returns the path.

        Example:
            >>> from twinshot import Client
            >>> print(Client().generate("a red car").save("car.png"))
            car.png
        """
        target = Path(path)
        target.write_bytes(self.bytes)
        return target

    def _repr_mimebundle_(self, **_options: object) -> dict[str, object]:
        """What a notebook shows."""
        return {f"image/{self.format}": self.bytes}


@dataclass(frozen=True)
class Generated(Picture):
    """A picture that was asked for.

    Attributes:
        timings: where the server's time went.
        request_id: names the request in the server's logs.
        unknown_words: what a narrow model was never taught; for streamed pictures `Done` tells.

    Example:
        >>> from twinshot import Client
        >>> picture = Client().generate("a red car", seed=7)
        >>> picture.seed, picture.format, picture.image.size
        (7, 'png', (64, 48))
    """

    timings: Timings
    request_id: str
    unknown_words: tuple[UnknownWord, ...] = ()
