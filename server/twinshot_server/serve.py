"""`twinshot serve`: bind, load, say where, and stop cleanly on SIGINT and SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from types import FrameType

import structlog
import uvicorn
from prometheus_client import disable_created_metrics

from twinshot_engine.types import EngineInfo
from twinshot_server.app import create_app
from twinshot_server.connection import Connection
from twinshot_server.engine_protocol import LOADING_ERRORS
from twinshot_server.listening import address, listen
from twinshot_server.logs import configure_logs
from twinshot_server.scheduling.dispatcher import Dispatcher
from twinshot_server.scheduling.jobs import StoppingError
from twinshot_server.service import Service
from twinshot_server.settings import Settings

_log = structlog.stdlib.get_logger("twinshot")


def run_server(settings: Settings, watch: Callable[[Dispatcher, str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then finish running requests and return.

    `watch` runs on a thread of its own from the moment the server listens; it receives the dispatcher, which
    knows how far loading is, and the server's address.

    Raises ListenError, and CheckpointError or SettingsError if the model cannot be loaded. What else keeps
    it from loading is logged, and ends the process with exit code 1.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]
    configure_logs(settings.log_level, settings.log_format)
    app = create_app(settings)
    listener = listen(settings.host, settings.port)
    url = address(listener)
    service: Service = app.state.service
    server = DrainingServer(_configure(app, settings), service)
    service.dispatcher.ready.add_done_callback(lambda ready: _settle(ready, server))
    _stop_on_signals(server)
    _log.info("listening", url=url)
    watcher = Thread(target=watch, args=(service.dispatcher, url), daemon=True)
    watcher.start()
    server.run(sockets=[listener])
    ready = service.dispatcher.ready
    if ready.done():
        watcher.join()
        _raise_failure(ready.exception())


class DrainingServer(uvicorn.Server):
    """Stops in two steps on SIGTERM: first unready and still serving, then finishing what was accepted.

    In Kubernetes requests still arrive for seconds after SIGTERM, so closing the listener at once would fail
    them. SIGINT, or a second SIGTERM, skips the first step.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._asked_to_stop = False

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        """A signal came."""
        if sig == signal.SIGINT or self._asked_to_stop or self._service.dispatcher.engines.info is None:
            self.should_exit = True
        else:
            asyncio.get_running_loop().call_soon_threadsafe(self._drain)
        self._asked_to_stop = True

    def _drain(self) -> None:
        self._service.lifecycle.drain().add_done_callback(self._exit)

    def _exit(self, _drained: object) -> None:
        self.should_exit = True


def _configure(app: object, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        server_header=False,
        http=Connection.with_patience(settings.body_seconds),
        ws="websockets-sansio",
        ws_max_size=settings.max_body_bytes,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )


def _settle(ready: Future[EngineInfo], server: uvicorn.Server) -> None:
    """Tidy up for serving, or stop the server because its model will never be ready."""
    if ready.exception() is None:
        # What is there by now stays: without it the collector's longest pauses are gone.
        gc.collect()
        gc.freeze()
    else:
        server.should_exit = True


def _raise_failure(failure: BaseException | None) -> None:
    if isinstance(failure, LOADING_ERRORS):
        raise failure
    if failure is not None and not isinstance(failure, StoppingError):
        sys.exit(1)


def _stop_on_signals(server: uvicorn.Server) -> None:
    """Stop the server on the first SIGINT or SIGTERM.

    uvicorn installs handlers of its own while it serves, and afterwards raises the signal again; these
    catch it there, so that a clean stop ends with exit code 0, and before, while uvicorn starts.
    """

    def stop(_signal: int, _frame: object) -> None:
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
