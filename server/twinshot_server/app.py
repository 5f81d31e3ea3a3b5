"""The application: one factory, nothing global."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from twinshot_server import __version__
from twinshot_server.dispatcher import Dispatcher
from twinshot_server.engine_protocol import LOADING_ERRORS, ImageEngine, Progress
from twinshot_server.errors import install_error_handlers
from twinshot_server.metrics import Metrics
from twinshot_server.middleware import LimitBody, Observe
from twinshot_server.request_queue import QueueClosedError
from twinshot_server.routes import generate, health, page
from twinshot_server.service import Service
from twinshot_server.settings import Settings

_log = structlog.stdlib.get_logger("twinshot")


def create_app(settings: Settings | None = None, engine: ImageEngine | None = None) -> FastAPI:
    """The whole HTTP server as an ASGI application.

    Without an `engine` the one that `settings` describe is loaded in the background when the
    application starts; until then `/readyz` answers 503.
    """
    settings = settings or Settings()
    load = _loader(settings) if engine is None else lambda _progress: engine
    metrics = Metrics()
    dispatcher = Dispatcher(
        load, max_batch=settings.max_batch, max_queue=settings.max_queue, on_batch=metrics.count_batch
    )
    metrics.watch(dispatcher)
    service = Service(settings, dispatcher, metrics)
    dispatcher.ready.add_done_callback(lambda ready: _announce(service, ready))
    app = FastAPIOffline(
        title="twinshot",
        version=__version__,
        description="One-step text-to-image over HTTP.",
        redoc_url=None,
        lifespan=_lifespan(service),
    )
    app.state.service = service
    app.add_middleware(LimitBody, limit=settings.max_body_bytes)
    app.add_middleware(Observe, metrics=metrics)
    install_error_handlers(app)
    for module in (generate, health, page):
        app.include_router(module.router)
    page.mount_static(app)
    return app


def _lifespan(service: Service) -> Callable[[FastAPI], object]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.dispatcher.start()
        try:
            yield
        finally:
            _log.info("stopping")
            service.dispatcher.stop()

    return lifespan


def _announce(service: Service, ready: Future[ImageEngine]) -> None:
    error = ready.exception()
    if error is None:
        info = ready.result().info
        service.metrics.describe_engine(info)
        _log.info("model ready", model=info.name, device=info.device, seconds=round(info.load_seconds, 2))
    elif not isinstance(error, (*LOADING_ERRORS, QueueClosedError)):
        _log.error("model failed", exc_info=error)


def _loader(settings: Settings) -> Callable[[Progress], ImageEngine]:
    def load(check_stop: Progress) -> ImageEngine:
        # Here, on the engine's thread: importing torch takes seconds in which the port answers already.
        from twinshot_server.loading import load_engine

        def progress(stage: str, fraction: float) -> None:
            check_stop(stage, fraction)
            _log.debug("loading", stage=stage, fraction=round(fraction, 2))

        return load_engine(settings, progress)

    return load
