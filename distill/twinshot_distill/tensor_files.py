"""Tensors on disk: written with one kind of error, and readable by whom the umask allows.

safetensors reports a full disk as an exception of its own, which is no OSError, and since 0.8 makes its files
for their owner alone, which a server in a container, as another user, cannot read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

_READ_AND_WRITE = 0o666


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, contiguous ones on any device, to a file.

    Raises:
        OSError: the disk does not take it.
    """
    with one_kind_of_error():
        save_file(dict(tensors), path, None if metadata is None else dict(metadata))
        let_read(path)


@contextmanager
def one_kind_of_error() -> Iterator[None]:
    """Turn what safetensors raises where it cannot write into an OSError."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error


def let_read(path: Path) -> None:
    """Give a file the mode that a new one has under the process's umask."""
    umask = os.umask(0o077)  # it can only be asked for by setting it
    os.umask(umask)
    path.chmod(_READ_AND_WRITE & ~umask)
