"""The application: one factory, nothing global."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from twinshot_engine.types import EngineInfo
from twinshot_server import __version__
from twinshot_server.access.guard import Guard
from twinshot_server.access.keys import KeyRing
from twinshot_server.access.middleware import LimitBody, Observe
from twinshot_server.engine_protocol import LOADING_ERRORS, ImageEngine
from twinshot_server.errors import install_error_handlers
from twinshot_server.gpus import count_replicas
from twinshot_server.lifecycle import Lifecycle
from twinshot_server.metrics import Metrics
from twinshot_server.openapi import describe_with_keys
from twinshot_server.processes.arena import Arena
from twinshot_server.processes.children import ProcessChild, Spawn, ThreadChild
from twinshot_server.processes.encoder_worker import run_encoder
from twinshot_server.processes.engine_worker import EngineWorker
from twinshot_server.routes import admin, generate, health, openai_images, page, realtime
from twinshot_server.scheduling.dispatcher import Dispatcher
from twinshot_server.scheduling.jobs import StoppingError
from twinshot_server.service import Service
from twinshot_server.settings import Settings
from twinshot_server.tracing import Tracer

_log = structlog.stdlib.get_logger("twinshot")


def create_app(
    settings: Settings | None = None, engine: ImageEngine | None = None, tracer: Tracer | None = None
) -> FastAPI:
    """The whole HTTP server as an ASGI application.

    Without an `engine`, engines are processes of their own, started with the application as `settings`
    describe; until one is ready `/readyz` answers 503. A given `engine` runs on a thread of this process, as
    does then the encoder. Raises SettingsError if API keys cannot be read.
    """
    settings = settings or Settings()
    ring = KeyRing.load(settings)
    metrics = Metrics()
    dispatcher = _make_dispatcher(settings, engine, metrics)
    metrics.watch(dispatcher, vllm_names=settings.vllm_metrics)
    lifecycle = Lifecycle(dispatcher, metrics, settings)
    service = Service(settings, dispatcher, metrics, lifecycle)
    dispatcher.ready.add_done_callback(_announce)
    app = FastAPIOffline(
        title="twinshot",
        version=__version__,
        description="One-step text-to-image over HTTP.",
        redoc_url=None,
        lifespan=_lifespan(service),
    )
    app.state.service = service
    _surround(app, service, ring, tracer or Tracer.from_environment())
    install_error_handlers(app)
    for module in (generate, openai_images, realtime, health, admin, page):
        app.include_router(module.router)
    page.mount_static(app)
    describe_with_keys(app)
    return app


def _surround(app: FastAPI, service: Service, ring: KeyRing, tracer: Tracer) -> None:
    """Add middleware, the innermost first."""
    settings = service.settings
    app.add_middleware(LimitBody, limit=settings.max_body_bytes, seconds=settings.body_seconds)
    app.add_middleware(Guard, ring=ring, origins=settings.origins)
    if settings.origins:
        exposed = ["X-Seed", "X-Request-Id", "Server-Timing", "Retry-After"]
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-Id"],
            expose_headers=exposed,
        )
    app.add_middleware(Observe, metrics=service.metrics, tracer=tracer, lifecycle=service.lifecycle)


def _make_dispatcher(settings: Settings, engine: ImageEngine | None, metrics: Metrics) -> Dispatcher:
    replicas = count_replicas(settings) if engine is None else 1
    # For each engine a batch being drawn, one that waits there, and as many being encoded.
    arena = Arena(replicas * 3 * settings.largest_batch + 8)
    if engine is not None:
        worker = _engine_thread(settings, arena, engine)
        return Dispatcher(settings, arena, [worker], _encoder_thread(arena), metrics)
    own = [settings.model_copy(update={"replicas": replicas, "replica": each}) for each in range(replicas)]
    engines = [_process("engine", arena, each) for each in own]
    return Dispatcher(settings, arena, engines, _process("encoder", arena, own[0]), metrics)


def _process(role: str, arena: Arena, settings: Settings) -> Spawn:
    options = settings.model_dump_json(exclude={"api_keys", "admin_key"})
    return lambda: ProcessChild(role, arena, options)


def _engine_thread(settings: Settings, arena: Arena, engine: ImageEngine) -> Spawn:
    batches = settings.batch_sizes
    return lambda: ThreadChild(
        "engine", lambda stream: EngineWorker(stream, arena, lambda _progress: engine, batches).run()
    )


def _encoder_thread(arena: Arena) -> Spawn:
    return lambda: ThreadChild("encoder", lambda stream: run_encoder(stream, arena, 2))


def _lifespan(service: Service) -> Callable[[FastAPI], object]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.dispatcher.start()
        service.lifecycle.start()
        try:
            yield
        finally:
            _log.info("stopping")
            await service.lifecycle.stop()
            await service.dispatcher.stop()

    return lifespan


def _announce(ready: Future[EngineInfo]) -> None:
    error = ready.exception()
    if error is None:
        info = ready.result()
        _log.info("model ready", model=info.name, device=info.device, seconds=round(info.load_seconds, 2))
    elif not isinstance(error, (*LOADING_ERRORS, StoppingError)):
        _log.error("model failed", reason=str(error))
