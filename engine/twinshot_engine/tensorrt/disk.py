"""Files that are either whole or not there, also when the disk is full half way."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twinshot_engine.errors import EngineFilesError
from twinshot_engine.files import quoted, tell

_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Hand out a path beside ``path`` to write a file or a folder to; it takes its place when all went well.

    Raises:
        EngineFilesError: nothing can be written there, or the disk is full. What was written is removed.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        remove(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        _sync(part)
        if path.is_dir():
            remove(path)
        part.replace(path)
    except OSError as error:
        if error.errno in _FULL:
            raise EngineFilesError(
                f"The disk is full while {quoted(path)} is written: free some space and run the same command "
                "again, which goes on where it stopped."
            ) from error
        raise EngineFilesError(f"{quoted(path)} cannot be written: {tell(error)}.") from error
    finally:
        remove(part)


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file at once, or not at all.

    Raises:
        EngineFilesError: as :func:`replaced`.
    """
    with replaced(path) as part:
        part.write_bytes(content)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have the disk say now whether it keeps what was written."""
    for file in path.rglob("*") if path.is_dir() else (path,):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
