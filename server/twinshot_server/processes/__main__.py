"""A child process of a server; see `children.ProcessChild`, which starts it."""

from __future__ import annotations

import os
import signal
import socket
import sys
from importlib import import_module

import structlog

from twinshot_engine.read_ahead import read_ahead
from twinshot_server.engine_protocol import ImageEngine, Progress
from twinshot_server.logs import configure_logs
from twinshot_server.processes.arena import Arena
from twinshot_server.processes.encoder_worker import run_encoder
from twinshot_server.processes.engine_worker import BrokenEngineError, EngineWorker
from twinshot_server.settings import DEFAULTS, Settings

_log = structlog.stdlib.get_logger("twinshot")


def main(role: str, stream: str, arena: str, slots: str, options: str) -> None:
    """Run as the engine or the encoder until the front hangs up."""
    # Ctrl-C reaches the whole group; the front decides when its children end, by hanging up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = Settings.model_validate_json(options)
    configure_logs(settings.log_level, settings.log_format)
    front = socket.socket(fileno=int(stream))
    memory = Arena(int(slots), int(arena))
    if role == "encoder":
        run_encoder(front, memory, settings.encoder_threads or min(4, os.cpu_count() or 1))
    else:
        _run_engine(front, memory, settings)


def _run_engine(front: socket.socket, memory: Arena, settings: Settings) -> None:
    def load(progress: Progress) -> ImageEngine:
        progress("importing", 0.0)
        if settings.engine == DEFAULTS.engine and settings.replica == 0:
            read_ahead(settings.checkpoint)
        module, _, function = settings.engine.partition(":")
        engine: ImageEngine = getattr(import_module(module), function)(settings, progress)
        return engine

    worker = EngineWorker(
        front,
        memory,
        load,
        settings.batch_sizes,
        # Even a hung engine ends with its front.
        on_hang_up=lambda: os._exit(0),
    )
    try:
        worker.run()
    except BrokenEngineError as error:
        _log.error("engine broke", exc_info=error)
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
