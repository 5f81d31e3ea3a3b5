"""What the server needs of an engine, and how a request's body becomes one of its requests."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from twinshot_engine.errors import CheckpointError
from twinshot_engine.types import GeneratedBatch, GenerateRequest
from twinshot_server.schemas import MAX_SEED, GenerateBody
from twinshot_server.settings import SettingsError

if TYPE_CHECKING:  # the engine brings torch along, which takes seconds to import
    from twinshot_engine.engine import EngineInfo

Progress = Callable[[str, float], None]
"""Called with the name of a loading stage and how much of it is done (0 to 1)."""


LOADING_ERRORS = (CheckpointError, SettingsError)
"""What keeps an engine from loading and can be mended by who started the server; one sentence each."""


class ImageEngine(Protocol):
    """What the server needs of an engine; `twinshot_engine.engine.Engine` is one."""

    @property
    def info(self) -> EngineInfo:
        """What was loaded and what it can do."""
        ...

    def warm(self) -> None:
        """Do once whatever makes the first request slow."""
        ...

    def validate(self, request: GenerateRequest) -> None:
        """Raise InvalidRequestError for a request this model cannot serve."""
        ...

    def generate(self, requests: Sequence[GenerateRequest]) -> GeneratedBatch:
        """Draw requests of one size and step count together."""
        ...


def complete(body: GenerateBody, engine: ImageEngine) -> GenerateRequest:
    """The body with the engine's size and a random seed where it names none.

    Raises InvalidRequestError if the engine cannot do what is asked.
    """
    width, height = body.dimensions or engine.info.sizes[0]
    seed = secrets.randbelow(MAX_SEED + 1) if body.seed is None else body.seed
    request = GenerateRequest(body.prompt, seed, width, height, body.steps)
    engine.validate(request)
    return request
