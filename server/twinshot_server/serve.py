"""`twinshot serve`: bind, load, say where, and stop cleanly on SIGINT and SIGTERM."""

from __future__ import annotations

import signal
import sys
from concurrent.futures import Future

import structlog
import typer
import uvicorn
from prometheus_client import disable_created_metrics

from twinshot_server.app import create_app
from twinshot_server.engine_protocol import LOADING_ERRORS, ImageEngine
from twinshot_server.listening import address, listen
from twinshot_server.logs import configure_logs
from twinshot_server.request_queue import QueueClosedError
from twinshot_server.service import Service
from twinshot_server.settings import Settings

_log = structlog.stdlib.get_logger("twinshot")


def run_server(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM, then finish running requests and return.

    Raises ListenError, and CheckpointError or SettingsError if the model cannot be loaded. What else keeps
    it from loading is logged, and ends the process with exit code 1.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]
    configure_logs(settings.log_level, settings.log_format)
    listener = listen(settings.host, settings.port)
    url = address(listener)
    app = create_app(settings)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=settings.shutdown_seconds,
        )
    )
    service: Service = app.state.service
    service.dispatcher.ready.add_done_callback(lambda ready: _settle(ready, server, url))
    _stop_on_signals(server)
    _log.info("listening", url=url)
    server.run(sockets=[listener])
    _raise_failure(service.dispatcher.failure)


def _settle(ready: Future[ImageEngine], server: uvicorn.Server, url: str) -> None:
    """Say that the model is ready, or stop the server because it will never be."""
    if ready.exception() is None:
        typer.echo(f"twinshot is ready: open {url}")
    else:
        server.should_exit = True


def _raise_failure(failure: BaseException | None) -> None:
    if isinstance(failure, LOADING_ERRORS):
        raise failure
    if failure is not None and not isinstance(failure, QueueClosedError):
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
