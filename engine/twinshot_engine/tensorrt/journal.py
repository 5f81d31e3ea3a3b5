"""Remembers which steps of a build are done, so that the next run goes on where one stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinshot_engine.tensorrt.disk import write_whole


class Journal:
    """Steps by name, each with the key of what it was made from and what became of it.

    A step whose key is another one counts as not done: checkpoint, shapes, versions or GPUs have changed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._steps = _read(path)

    def find(self, step: str, key: str) -> Mapping[str, Any] | None:
        """What was kept of a step that is done, else None."""
        entry = self._steps.get(step)
        return entry["facts"] if entry and entry["key"] == key else None

    def keep(self, step: str, key: str, facts: Mapping[str, Any]) -> None:
        """Note that a step is done.

        Raises:
            EngineFilesError: the disk is full.
        """
        self._steps[step] = {"key": key, "facts": dict(facts)}
        write_whole(self._path, json.dumps(self._steps, indent=1).encode())


def key_of(**made_from: Any) -> str:
    """Hash what a step is made from."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    """A journal that cannot be read costs its steps again, no more."""
    try:
        steps = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    whole = isinstance(steps, dict) and all(
        isinstance(step, dict) and step.keys() >= {"key", "facts"} for step in steps.values()
    )
    return steps if whole else {}
