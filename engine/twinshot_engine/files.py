"""Read a checkpoint's JSON files, and put what goes wrong in one line."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twinshot_engine.errors import CheckpointError

INDEX = "model_index.json"
"""The file that makes a folder a checkpoint, and names its family and parts."""


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object from a checkpoint.

    Raises:
        CheckpointError: the file is missing or not a JSON object.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{quoted(path)} is missing: {remedy(path)}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{quoted(path)} is not readable JSON: {tell(error)}; fetch it again."
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{quoted(path)} holds a {type(content).__name__}, not a JSON object: fetch it again."
        )
    return dict(content)


def remedy(missing: Path) -> str:
    """What helps where a checkpoint's file is missing: a base supplies parts whose folders are not there."""
    if missing.name == INDEX:
        return "name a folder in diffusers' layout, or a base (--base) of the same family, which has it"
    if not missing.parent.is_dir():
        return "name a base (--base) that has this part"
    return f"fetch it again, or remove {quoted(missing.parent)} and name a base (--base) that has this part"


def tell(error: BaseException) -> str:
    """Put an error on one line, short enough to stand inside a sentence."""
    return one_line(str(error)) or type(error).__name__


def one_line(text: str) -> str:
    """Put a text on one line, short enough to stand inside a sentence."""
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= 300 else f"{line[:299]}…"


def quoted(path: Path) -> str:
    """A path as it stands in a sentence."""
    return f"'{path}'"


def listed(names: Sequence[str]) -> str:
    """Some names as they stand in a sentence: the first three, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
