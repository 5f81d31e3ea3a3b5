"""`twinshot generate`: load the model, draw one picture, write it. Importing this imports torch."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from twinshot_engine.types import GenerateRequest, StageTimes
from twinshot_server.engine_protocol import Progress
from twinshot_server.images import ImageFormat, encode
from twinshot_server.loading import load_engine
from twinshot_server.saving import write_whole
from twinshot_server.schemas import GenerateBody
from twinshot_server.settings import Settings


@dataclass(frozen=True, slots=True)
class Shot:
    """A picture that was drawn and written."""

    output: Path
    request: GenerateRequest
    times: StageTimes

    @property
    def milliseconds(self) -> dict[str, float]:
        """Where the time went, by stage."""
        return {stage: round(seconds * 1000, 3) for stage, seconds in asdict(self.times).items()}

    def facts(self) -> dict[str, object]:
        """What `--json` prints."""
        return {
            "output": str(self.output),
            "seed": self.request.seed,
            "width": self.request.width,
            "height": self.request.height,
            "steps": self.request.steps,
            "timings_ms": self.milliseconds,
        }


def draw_to_file(
    settings: Settings, body: GenerateBody, image_format: ImageFormat, output: Path, progress: Progress
) -> Shot:
    """Load, draw, encode and write. Raises CheckpointError, InvalidRequestError or OutputError."""
    engine = load_engine(settings, progress)
    (request,) = body.requests(engine.info.sizes[0])
    engine.validate(request)
    progress("drawing", 0.0)
    drawn = engine.generate([request])
    started = time.monotonic()
    image = encode(drawn.images[0], image_format, body.quality)
    times = replace(drawn.times, encode=time.monotonic() - started)
    write_whole(output, image)
    return Shot(output, request, times)
