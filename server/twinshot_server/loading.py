"""From settings to a loaded engine. Importing this module imports torch."""

from __future__ import annotations

import torch

from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.schedule import Steps
from twinshot_server.engine_protocol import Progress
from twinshot_server.settings import Settings, SettingsError


def load_engine(settings: Settings, progress: Progress | None = None) -> Engine:
    """Load the checkpoint that the settings name. Raises SettingsError or CheckpointError."""
    return Engine.load(engine_config(settings), progress)


def _own_device(settings: Settings) -> str:
    """The GPU of this replica, where there are several of both."""
    count = torch.cuda.device_count() if settings.device in {"auto", "cuda"} else 0
    return f"cuda:{settings.replica % count}" if settings.replicas != 1 and count else settings.device


def _own_threads(settings: Settings) -> int | None:
    """CPU threads of this replica: several share the cores, since each would take all of them."""
    if settings.threads is not None or settings.replicas in {1, "auto"}:
        return settings.threads
    return max(1, torch.get_num_threads() // int(settings.replicas))


def engine_config(settings: Settings) -> EngineConfig:
    """The settings as the engine wants them. Raises SettingsError for what this machine does not have."""
    try:
        config = EngineConfig(
            checkpoint=settings.checkpoint,
            base=settings.base,
            adapters=settings.adapter,
            device=_own_device(settings),
            precision=settings.precision,
            text_fp8=settings.text_fp8,
            memory=settings.memory,
            backend=settings.backend,
            engines=settings.engines,
            fallback=settings.fallback,
            sizes=settings.listed_sizes,
            steps=tuple(map(Steps.parse, settings.steps.split(","))),
            batch_sizes=(1,) if settings.memory == "low" else settings.batch_sizes,
            max_batch=settings.largest_batch,
            threads=_own_threads(settings),
        )
        config.placement()
    except ValueError as error:
        raise SettingsError(str(error)) from None
    return config
