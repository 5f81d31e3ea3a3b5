"""What output folders remember: how their files were made, and rows that took long to measure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from twinshot_distill.errors import TrainingError
from twinshot_engine.types import EngineInfo

DRAWING = "drawing.json"
"""Says in a folder of pictures how they were drawn."""


@contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """Tell in one sentence that files cannot be written. Raises TrainingError for any OSError within."""
    try:
        yield
    except OSError as error:
        raise TrainingError(f"{what} cannot be written to '{folder}': {error}.") from error


def save_whole(picture: Image.Image, path: Path) -> None:
    """Save as PNG; the path appears only when all of it is written. Raises OSError."""
    # The scorers must not take the rest of an interrupted write for a picture: GenEval's takes every name
    # that begins like 0000.png, DPG-Bench's looks prompts up by what stands before the first dot.
    partial = path.with_name(f".{path.stem}.partial")
    try:
        picture.save(partial, "PNG")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def identity(info: EngineInfo) -> dict[str, Any]:
    """What of a loaded checkpoint decides its pictures: which one, of when, and its precision."""
    path = Path(info.checkpoint).expanduser()
    return {
        "checkpoint": str(path.resolve()) if path.exists() else info.checkpoint,
        "revision": info.revision or _changed(path),
        "precision": info.precision,
        "text_precision": info.text_precision,
    }


def _changed(path: Path) -> str | None:
    """When a checkpoint on this machine was last changed: another training may lie under the same name."""
    files = [entry for entry in (path, *path.rglob("*")) if entry.is_file()]
    if not files:
        return None
    newest = max(entry.stat().st_mtime for entry in files)
    return datetime.fromtimestamp(newest, UTC).isoformat(timespec="seconds")


def claim(folder: Path, asked: Mapping[str, Any], *, begun: bool) -> None:
    """Leave in a folder how its pictures are drawn, or see that an earlier call drew in the same way.

    Args:
        folder: exists.
        asked: settings, as JSON takes them.
        begun: whether it holds pictures already.

    Raises:
        TrainingError: it holds pictures that were drawn otherwise, or nobody knows how.
        OSError: it cannot be written.
    """
    path = folder / DRAWING
    if not path.is_file():
        if begun:
            raise TrainingError(
                f"'{folder}' holds pictures, but no {DRAWING} that says how they were drawn: "
                "name another folder with --output."
            )
        path.write_text(json.dumps(asked, indent=1) + "\n")
        return
    kept = _read(path)
    changed = [
        f"{name} {kept.get(name)}, not {value}" for name, value in asked.items() if kept.get(name) != value
    ]
    if changed:
        raise TrainingError(
            f"'{folder}' holds pictures of other settings: {'; '.join(changed)}. Name another folder with "
            "--output, or remove this one."
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text())
    except ValueError:
        kept = None
    if not isinstance(kept, dict):
        raise TrainingError(f"'{path}' is damaged: remove its folder, or name another with --output.")
    return kept


class KeptRows:
    """Rows in a file as they come, so that the same measurement goes on where an earlier one stopped.

    Args:
        path: of the file. Rows of a file that was asked for something else, or is damaged, are dropped.
        asked: all that decides the rows, as JSON takes it.

    Raises:
        TrainingError: the file cannot be written; the first try is made at once.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any]) -> None:
        self._path, self._asked = path, json.loads(json.dumps(asked))
        with writing("What is measured", path.parent):
            self._rows = self._found()
        self.before = len(self._rows)
        """How many rows an earlier call has left."""
        self._write()

    def row(
        self, facts: dict[str, Any], measure: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> dict[str, Any]:
        """The kept row that has these facts, or else what `measure` makes of them, kept from now on."""
        for row in self._rows:
            if facts.items() <= row.items():
                return row
        row = measure(facts)
        self._rows.append(row)
        self._write()
        return row

    def forget(self) -> None:
        """Remove the file: what was measured is reported."""
        self._path.unlink(missing_ok=True)

    def _found(self) -> list[dict[str, Any]]:
        try:
            kept = json.loads(self._path.read_text())
            return list(kept["rows"]) if kept["asked"] == self._asked else []
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return []

    def _write(self) -> None:
        partial = self._path.with_suffix(".partial")
        with writing("What is measured", self._path.parent):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({"asked": self._asked, "rows": self._rows}, indent=1) + "\n")
            partial.replace(self._path)
