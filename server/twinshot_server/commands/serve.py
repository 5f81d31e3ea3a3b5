"""`twinshot serve`: the options, and what a person at a terminal sees until the model is ready."""

from __future__ import annotations

import json
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinshot_server.commands.exits import one_sentence_errors
from twinshot_server.commands.options import (
    Adapters,
    AsJson,
    BackendOption,
    Base,
    Checkpoint,
    Device,
    Engines,
    Fallback,
    MemoryOption,
    PrecisionOption,
    TextFp8,
    Threads,
    option,
)
from twinshot_server.commands.progress import Bar
from twinshot_server.settings import DEFAULTS, Batching, LogFormat, LogLevel, Settings

if TYPE_CHECKING:
    from twinshot_engine.types import EngineInfo
    from twinshot_server.scheduling.dispatcher import Dispatcher

_REFRESH_SECONDS = 0.1


def serve(
    checkpoint: Checkpoint = DEFAULTS.checkpoint,
    base: Base = DEFAULTS.base,
    adapter: Adapters = None,
    device: Device = DEFAULTS.device,
    precision: PrecisionOption = DEFAULTS.precision,
    text_fp8: TextFp8 = DEFAULTS.text_fp8,
    memory: MemoryOption = DEFAULTS.memory,
    backend: BackendOption = DEFAULTS.backend,
    engines: Engines = DEFAULTS.engines,
    fallback: Fallback = DEFAULTS.fallback,
    sizes: Annotated[str, option("sizes")] = DEFAULTS.sizes,
    steps: Annotated[str, option("steps")] = DEFAULTS.steps,
    threads: Threads = DEFAULTS.threads,
    replicas: Annotated[str, option("replicas")] = str(DEFAULTS.replicas),
    batching: Annotated[Batching, option("batching")] = DEFAULTS.batching,
    max_batch: Annotated[int, option("max_batch")] = DEFAULTS.max_batch,
    engine: Annotated[str, option("engine")] = DEFAULTS.engine,
    host: Annotated[str, option("host")] = DEFAULTS.host,
    port: Annotated[int, option("port")] = DEFAULTS.port,
    max_queue: Annotated[int, option("max_queue")] = DEFAULTS.max_queue,
    max_images: Annotated[int, option("max_images")] = DEFAULTS.max_images,
    max_body_bytes: Annotated[int, option("max_body_bytes")] = DEFAULTS.max_body_bytes,
    body_seconds: Annotated[float, option("body_seconds")] = DEFAULTS.body_seconds,
    deadline_ms: Annotated[int, option("deadline_ms")] = DEFAULTS.deadline_ms,
    encoder_threads: Annotated[int | None, option("encoder_threads")] = DEFAULTS.encoder_threads,
    engine_restarts: Annotated[int, option("engine_restarts")] = DEFAULTS.engine_restarts,
    hang_seconds: Annotated[float, option("hang_seconds")] = DEFAULTS.hang_seconds,
    drain_seconds: Annotated[float, option("drain_seconds")] = DEFAULTS.drain_seconds,
    shutdown_seconds: Annotated[int, option("shutdown_seconds")] = DEFAULTS.shutdown_seconds,
    api_keys_file: Annotated[Path | None, option("api_keys_file")] = DEFAULTS.api_keys_file,
    cors_origins: Annotated[str, option("cors_origins")] = DEFAULTS.cors_origins,
    vllm_metrics: Annotated[bool, option("vllm_metrics")] = DEFAULTS.vllm_metrics,
    log_level: Annotated[LogLevel, option("log_level")] = DEFAULTS.log_level,
    log_format: Annotated[LogFormat, option("log_format")] = DEFAULTS.log_format,
    as_json: AsJson = False,
) -> None:
    """Serve pictures over HTTP until SIGINT (Ctrl-C) or SIGTERM.

    API keys come from --api-keys-file, or from TWINSHOT_API_KEYS and TWINSHOT_ADMIN_KEY.
    """
    given = dict(locals())
    del given["as_json"]
    with one_sentence_errors():
        settings = Settings(**given)
        from twinshot_server.serve import run_server

        run_server(settings, lambda dispatcher, url: watch_loading(dispatcher, url, as_json=as_json))


def watch_loading(dispatcher: Dispatcher, url: str, *, as_json: bool) -> None:
    """Show how far loading and warming are, and say on stdout when, and where, the model is ready."""
    ready: Future[EngineInfo] = dispatcher.ready
    with Bar() as bar, bar.above_logs():
        while not wait([ready], _REFRESH_SECONDS).done:
            bar(*dispatcher.engines.stage)
    if ready.exception() is None:
        line = json.dumps({"url": url, "model": ready.result().name})
        typer.echo(line if as_json else f"twinshot is ready: open {url}")
