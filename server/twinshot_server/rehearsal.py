"""Starts an engine as a server would, to see how long that takes and whether it works."""

from __future__ import annotations

from collections.abc import Callable

from twinshot_engine.types import EngineInfo
from twinshot_server.processes import channel
from twinshot_server.processes.arena import Arena
from twinshot_server.processes.children import ProcessChild
from twinshot_server.processes.messages import Begin, CannotLoad, Loading, Ready
from twinshot_server.processes.start_clock import StartClock
from twinshot_server.settings import Settings


class StartError(Exception):
    """An engine could not be started; the message says why."""


def rehearse_start(
    settings: Settings, report: Callable[[str, float], None]
) -> tuple[EngineInfo, dict[str, float]]:
    """Start an engine in a process of its own until it could draw, and end it: what it was, seconds by stage.

    `report` hears of each stage. Raises StartError.
    """
    arena, clock = Arena(1), StartClock()
    child = ProcessChild("engine", arena, settings.model_dump_json(exclude={"api_keys", "admin_key"}))
    try:
        channel.send(child.stream, Begin(measure=True))
        while not isinstance(message := channel.receive(child.stream), Ready):
            _note(message, clock, report)
        return message.info, clock.finish()
    except (EOFError, OSError):
        raise StartError(f"its process ended: {child.wait(5)}") from None
    finally:
        child.stream.close()
        child.wait(5)
        arena.close()


def _note(message: Loading | CannotLoad, clock: StartClock, report: Callable[[str, float], None]) -> None:
    if isinstance(message, CannotLoad):
        raise StartError(message.sentence or f"{message.kind}; what was logged says more")
    clock.enter(message.stage)
    report(message.stage, message.fraction)
