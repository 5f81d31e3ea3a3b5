"""Text files of users."""

from __future__ import annotations

from pathlib import Path

from twinshot_distill.errors import TrainingError


def read_text(path: Path, errors: str = "strict") -> str:
    """Read a file; `errors` as in `open`. Raises TrainingError: it is no text, or not there."""
    try:
        return path.read_text("utf-8", errors)
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"'{path}' cannot be read: {error}; a text file in UTF-8 is needed.") from error
