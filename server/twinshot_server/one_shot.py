"""`twinshot generate`: load the model, draw pictures one after another. Importing this imports torch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinshot_engine.errors import InvalidRequestError
from twinshot_engine.types import GenerateRequest, StageTimes
from twinshot_server.answers import UnknownWord
from twinshot_server.engine_protocol import ImageEngine, Progress
from twinshot_server.images import ImageFormat, encode
from twinshot_server.lexicon import Lexicon
from twinshot_server.loading import load_engine
from twinshot_server.saving import write_whole
from twinshot_server.schemas import GenerateBody
from twinshot_server.settings import Settings

Pixels = NDArray[np.uint8]

_FEW = 16
"""Pictures for which capturing CUDA graphs takes longer than they save."""
_GAP = 4


@dataclass(frozen=True, slots=True)
class Shot:
    """A picture that was drawn: uint8 [height, width, 3], and the file it was written to, if it was.

    `unknown` are the words of its prompt that the model was never taught.
    """

    request: GenerateRequest
    pixels: Pixels
    times: StageTimes
    unknown: tuple[UnknownWord, ...] = ()
    output: Path | None = None

    @property
    def milliseconds(self) -> dict[str, float]:
        """Where the time went, by stage."""
        return {stage: round(seconds * 1000, 3) for stage, seconds in asdict(self.times).items()}

    def facts(self) -> dict[str, object]:
        """What `--json` prints."""
        return {
            "output": str(self.output),
            "prompt": self.request.prompt,
            "seed": self.request.seed,
            "width": self.request.width,
            "height": self.request.height,
            "steps": self.request.steps,
            "unknown_words": [each.model_dump() for each in self.unknown],
            "timings_ms": self.milliseconds,
        }

    def write(self, output: Path, image_format: ImageFormat, quality: int | None) -> Shot:
        """Write the picture to a file. Raises OutputError."""
        started = time.monotonic()
        image = encode(self.pixels, image_format, quality)
        times = replace(self.times, encode=time.monotonic() - started)
        write_whole(output, image)
        return replace(self, output=output, times=times)


def draw(settings: Settings, bodies: Sequence[GenerateBody], progress: Progress) -> Iterator[Shot]:
    """Load, and draw what each body asks for.

    Raises SettingsError or CheckpointError, or InvalidRequestError before anything is drawn.
    """
    count = sum(body.n for body in bodies)
    if settings.backend == "auto" and not settings.engines and count <= _FEW:
        settings = settings.model_copy(update={"backend": "eager"})
    engine = load_engine(settings, progress)
    lexicon = Lexicon(engine.info.vocabulary, engine.info.near)
    asked = [request for body in bodies for request in body.requests(engine.info.sizes[0])]
    requests = [replace(request, prompt=lexicon.read(request.prompt).prompt) for request in asked]
    _validate(engine, requests)
    if engine.info.backend != "eager":
        engine.warm(progress)
    for done, request in enumerate(requests):
        progress(f"picture {done + 1} of {count}", done / count)
        drawn = engine.generate([request])
        unknown = lexicon.read(asked[done].prompt).unknown
        yield Shot(asked[done], drawn.images[0], drawn.times, unknown)


def arrange(shots: Sequence[Shot], columns: int) -> Pixels:
    """Pictures of one size on a white sheet, row by row: uint8 [height, width, 3]."""
    height, width, _ = shots[0].pixels.shape
    rows = math.ceil(len(shots) / columns)
    sheet = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for number, shot in enumerate(shots):
        top, left = number // columns * (height + _GAP), number % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = shot.pixels
    return sheet


def _validate(engine: ImageEngine, requests: Sequence[GenerateRequest]) -> None:
    for request in requests:
        try:
            engine.validate(request)
        except InvalidRequestError as error:
            if len({each.prompt for each in requests}) == 1:
                raise
            raise InvalidRequestError(f"{request.prompt[:60]!r}: {error}") from None
