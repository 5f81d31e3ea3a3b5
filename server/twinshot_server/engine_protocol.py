"""What the server needs of an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from twinshot_engine.errors import CheckpointError
from twinshot_engine.types import GeneratedBatch, GenerateRequest
from twinshot_server.settings import SettingsError

if TYPE_CHECKING:  # the engine brings torch along, which takes seconds to import
    from twinshot_engine.engine import EngineInfo

Progress = Callable[[str, float], None]
"""Called with the name of a loading stage and how much of it is done (0 to 1)."""


LOADING_ERRORS = (CheckpointError, SettingsError)
"""What keeps an engine from loading and can be mended by who started the server; one sentence each."""


class ImageEngine(Protocol):
    """What the server needs of an engine; `twinshot_engine.engine.Engine` is one.

    An engine that takes adapters also has `adapters` (the names of those loaded), and
    `load_adapter(name, source)` and `unload_adapter(name)`, which raise InvalidRequestError. One that
    remembers prompts may have `cache_statistics` with `hits` and `misses`.
    """

    @property
    def info(self) -> EngineInfo:
        """What was loaded and what it can do."""
        ...

    def warm(self, progress: Progress | None = None) -> None:
        """Do once whatever makes the first request slow; what `progress` raises ends it."""
        ...

    def validate(self, request: GenerateRequest) -> None:
        """Raise InvalidRequestError for a request this model cannot serve; any thread may ask."""
        ...

    def generate(self, requests: Sequence[GenerateRequest]) -> GeneratedBatch:
        """Draw requests of one size, step count and adapter together."""
        ...
