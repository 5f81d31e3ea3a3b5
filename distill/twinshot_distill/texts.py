"""Text files that a user names."""

from __future__ import annotations

from pathlib import Path

from twinshot_distill.errors import TrainingError


def read_text(path: Path, errors: str = "strict") -> str:
    """A file's text; `errors` as in `open`. Raises TrainingError: it is not there, or no text in UTF-8."""
    try:
        return path.read_text("utf-8", errors)
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"'{path}' cannot be read: {error}; it must be a text file in UTF-8.") from error
