"""All engines of a server: who can draw, what they have in common, and what to say while none can."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from twinshot_engine.errors import InvalidRequestError
from twinshot_engine.types import EngineInfo, GenerateRequest
from twinshot_server.processes.children import Spawn
from twinshot_server.scheduling.batch import Owner
from twinshot_server.scheduling.engine_link import EngineLink, EngineLostError
from twinshot_server.settings import Settings


class NotReadyError(Exception):
    """No engine can draw at this moment; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EnginePool:
    """One link for each way in `spawns` to start an engine; `owner` hears what they do."""

    def __init__(self, settings: Settings, spawns: Sequence[Spawn], owner: Owner) -> None:
        self._links = [
            EngineLink(
                f"engine {number}",
                spawn,
                owner,
                restarts=settings.engine_restarts,
                hang_seconds=settings.hang_seconds,
            )
            for number, spawn in enumerate(spawns)
        ]

    def __iter__(self) -> Iterator[EngineLink]:
        """Every engine, whatever its state."""
        return iter(self._links)

    def __getitem__(self, number: int) -> EngineLink:
        """The engine with this number."""
        return self._links[number]

    def start(self) -> None:
        """Begin to load, on the running event loop."""
        for engine in self._links:
            engine.start()

    async def stop(self) -> None:
        """End all engines; what they draw is lost."""
        await asyncio.gather(*(engine.stop() for engine in self._links))

    @property
    def available(self) -> list[EngineLink]:
        """The engines that can draw."""
        return [engine for engine in self._links if engine.state == "ready" and not engine.hung]

    @property
    def healthy(self) -> bool:
        """Whether no engine hangs or is gone for good."""
        return not any(engine.hung or engine.state == "failed" for engine in self._links)

    @property
    def info(self) -> EngineInfo | None:
        """What is loaded, once anything is."""
        return next((engine.info for engine in self._links if engine.info), None)

    @property
    def failure(self) -> BaseException | None:
        """What keeps the engines from working, if all of them gave up."""
        failures = [engine.failure for engine in self._links if engine.state == "failed"]
        return failures[0] if len(failures) == len(self._links) else None

    @property
    def stage(self) -> tuple[str, float]:
        """What an engine that cannot draw is doing, and how much of that is done, 0 to 1."""
        waited_for = next((engine for engine in self._links if engine.state != "ready"), self._links[0])
        return waited_for.progress

    @property
    def progress(self) -> str:
        """The same in words."""
        stage, fraction = self.stage
        return f"{stage} {fraction:.0%}"

    @property
    def running(self) -> int:
        """How many jobs the engines have in work."""
        return sum(engine.running for engine in self._links)

    @property
    def adapters(self) -> list[str]:
        """The adapters that every engine has loaded."""
        return sorted(set.intersection(*(set(engine.adapters) for engine in self._links)))

    def free_at(self, now: float) -> list[float]:
        """The moments at which those that can draw should be free."""
        return [engine.free_at(now) for engine in self.available]

    async def validate(self, request: GenerateRequest) -> None:
        """Ask an engine whether it can draw this. Raises InvalidRequestError or NotReadyError."""
        if request.adapter is not None and self.available and request.adapter not in self.adapters:
            loaded = ", ".join(self.adapters) or "none"
            raise InvalidRequestError(f"The adapter {request.adapter!r} is not loaded; loaded: {loaded}.")
        for engine in self.available:
            try:
                await engine.validate(request)
            except EngineLostError:
                continue
            return
        raise self.not_ready()

    async def change_adapter(self, name: str, source: str | None) -> None:
        """Load an adapter into every engine, or unload it. Raises InvalidRequestError or NotReadyError."""
        if len(self.available) < len(self._links):
            raise self.not_ready()
        try:
            for engine in self._links:
                await engine.change_adapter(name, source)
        except EngineLostError:
            raise self.not_ready() from None

    def not_ready(self) -> NotReadyError:
        """Why nothing can be drawn at this moment, and when to ask again."""
        if self.failure is not None:
            return NotReadyError("The model could not be loaded; /health says why.")
        if self.info is not None:
            return NotReadyError("The engine is being restarted.", self.info.load_seconds)
        return NotReadyError("The model is still loading.")
