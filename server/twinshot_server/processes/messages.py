"""What the front, the engines and the encoder say to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twinshot_engine.types import EngineInfo, GenerateRequest, Size, StageTimes
from twinshot_server.images import ImageFormat


@dataclass(frozen=True, slots=True)
class Task:
    """One image of a batch: `job` names it, `slot` of the arena takes its pixels."""

    job: int
    slot: int
    request: GenerateRequest


@dataclass(frozen=True, slots=True)
class Begin:
    """To an engine, first: load and warm up, and measure costs unless they are known from one before it."""

    measure: bool


@dataclass(frozen=True, slots=True)
class Draw:
    """To an engine: draw these together; `batch` counts up."""

    batch: int
    tasks: Sequence[Task]


@dataclass(frozen=True, slots=True)
class Forget:
    """To an engine: nobody wants this job of this batch any more."""

    batch: int
    job: int


@dataclass(frozen=True, slots=True)
class Validate:
    """To an engine: can this be drawn? `call` comes back in Answered."""

    call: int
    request: GenerateRequest


@dataclass(frozen=True, slots=True)
class ChangeAdapter:
    """To an engine: load the adapter `name` from `source`, or unload it where `source` is None."""

    call: int
    name: str
    source: str | None


@dataclass(frozen=True, slots=True)
class Answered:
    """From an engine: how a Validate or ChangeAdapter ended; `refusal` is a sentence for the client."""

    call: int
    refusal: str | None = None
    adapters: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Loading:
    """From an engine: it has begun this stage, with this fraction (0 to 1) of the loading done."""

    stage: str
    fraction: float


@dataclass(frozen=True, slots=True)
class Cost:
    """Measured seconds of one batch."""

    size: Size
    steps: int
    batch: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Ready:
    """From an engine: it is loaded and warm; `costs` are empty if they were not to be measured."""

    info: EngineInfo
    costs: Sequence[Cost]
    adapters: Sequence[str]


@dataclass(frozen=True, slots=True)
class CannotLoad:
    """From an engine, last: loading failed. `sentence` is for who started the server, or None for a bug."""

    kind: str
    sentence: str | None


@dataclass(frozen=True, slots=True)
class Drawn:
    """From an engine: a job's pixels lie in its slot; `together` images shared its forward pass."""

    job: int
    times: StageTimes
    together: int


@dataclass(frozen=True, slots=True)
class NotDrawn:
    """From an engine: a job failed, or was dropped unwanted (`dropped`), or was refused with a sentence."""

    job: int
    refusal: str | None = None
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """From an engine: it is done with a batch, of which it drew `drawn` images in `seconds`."""

    batch: int
    drawn: int
    seconds: float
    gpu_bytes: tuple[int, int] | None = None
    """Memory that tensors hold, and that the process has reserved for them."""
    lookups: tuple[int, int] = (0, 0)
    """Prompts that were found encoded already, and that were not, since the last batch."""


@dataclass(frozen=True, slots=True)
class Encode:
    """To the encoder: make a file of the pixels in `slot`, and leave it there."""

    call: int
    slot: int
    size: Size
    image_format: ImageFormat
    quality: int | None


@dataclass(frozen=True, slots=True)
class Encoded:
    """From the encoder: a file of `length` bytes lies in the slot; None if it could not be made."""

    call: int
    length: int | None
    seconds: float
