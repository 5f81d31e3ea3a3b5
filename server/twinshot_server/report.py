"""`twinshot info`: what is installed and what the checkpoint can do. Importing this imports torch."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version

from huggingface_hub.constants import HF_HUB_CACHE

from twinshot_server import __version__
from twinshot_server.engine_protocol import Progress
from twinshot_server.loading import load_engine
from twinshot_server.settings import Settings

_LIBRARIES = ("torch", "transformers", "safetensors", "fastapi", "uvicorn")


def collect(settings: Settings, progress: Progress) -> dict[str, dict[str, object]]:
    """Facts by section. Loads the checkpoint to tell about it; raises CheckpointError."""
    info = load_engine(settings, progress).info
    model = asdict(info) | {
        "sizes": [f"{width}x{height}" for width, height in info.sizes],
        "load_seconds": round(info.load_seconds, 2),
    }
    return {
        "model": model,
        "versions": {
            "twinshot": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _LIBRARIES},
        },
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "hub_cache": HF_HUB_CACHE},
        "settings": settings.model_dump(exclude={"api_keys", "admin_key"}),
    }


def as_text(facts: dict[str, dict[str, object]]) -> str:
    """The facts for people: a heading a section, a line a fact."""
    sections = (
        "\n".join([name, *(f"  {key:<18} {_in_words(value)}" for key, value in section.items())])
        for name, section in facts.items()
    )
    return "\n\n".join(sections)


def _counts_up(values: Sequence[object]) -> bool:
    """Whether these are three or more whole numbers without a gap."""
    first = values[0] if len(values) > 2 else None
    return isinstance(first, int) and list(values) == list(range(first, first + len(values)))


def _in_words(value: object) -> str:
    """One line for any fact."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_in_words(each)}" for key, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        if _counts_up(value):
            return f"{value[0]} to {value[-1]}"
        return ", ".join(map(_in_words, value))
    return str(value)
