"""Writing a picture so that no half of it is ever seen."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from twinshot_server.images import ImageFormat

_SUFFIXES = {
    ".png": ImageFormat.PNG,
    ".jpg": ImageFormat.JPEG,
    ".jpeg": ImageFormat.JPEG,
    ".webp": ImageFormat.WEBP,
}


class OutputError(Exception):
    """The output file cannot be written; the message says why and what is accepted."""


def format_for(path: Path, asked: ImageFormat | None) -> ImageFormat:
    """The format to write: the one asked for, else what the file's name ends with. Raises OutputError."""
    found = asked or _SUFFIXES.get(path.suffix.lower())
    if found is None:
        known = ", ".join(_SUFFIXES)
        raise OutputError(
            f"cannot tell the format of {str(path)!r}; end its name with {known} or give --format"
        )
    return found


def numbered(path: Path, count: int) -> list[Path]:
    """Names of `count` files after one: `path` itself, or `out-01.png`, `out-02.png` and so on."""
    if count == 1:
        return [path]
    digits = len(str(count))
    return [path.with_stem(f"{path.stem}-{number:0{digits}}") for number in range(1, count + 1)]


def check_writable(path: Path) -> None:
    """Find out before the work is done that its result could not be kept. Raises OutputError."""
    if path.is_dir():
        raise OutputError(f"{str(path)!r} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {str(path.parent)!r}; create it first")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"the folder {str(path.parent)!r} is read-only; choose another with --output")


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step, replacing what is there. Raises OutputError."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            partial = Path(file.name)
            try:
                file.write(content)
                file.flush()
                partial.chmod(0o666 & ~_umask())
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror}") from error


def _umask() -> int:
    """The process's mask; it can only be read by setting it. Temporary files ignore it and are private."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
