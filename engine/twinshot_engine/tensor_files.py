"""Open a file of tensors, safetensors or GGUF: first its headers, then one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from twinshot_engine import gguf_file
from twinshot_engine.errors import CheckpointError
from twinshot_engine.files import quoted, tell

SAFETENSORS, GGUF = ".safetensors", ".gguf"
SUFFIXES = (SAFETENSORS, GGUF)
READABLE = ("F64", "F32", "F16", "BF16", *gguf_file.QUANTIZED)
"""The stored types whose values can be read."""

_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    "F4": 0.5,
    **gguf_file.QUANTIZED,
}
"""Bytes an element of the types that do not take one."""


class Header(NamedTuple):
    """What a file says about one of its tensors.

    Attributes:
        path: the file.
        key: the tensor's name there.
        shape: of what is read of it.
        kind: the stored type, as the file calls it.
        rows: which rows are read; all if None.
        turned: how many of the first of these come last instead.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    kind: str
    rows: slice | None = None
    turned: int = 0

    def take(self, whole: Tensor) -> Tensor:
        """Take the rows that are read from all that the file stores."""
        return self.turn(whole if self.rows is None else whole[self.rows])

    def turn(self, rows: Tensor) -> Tensor:
        """Put the rows that are read in their order."""
        return rows.roll(-self.turned, 0) if self.turned else rows

    @property
    def bytes(self) -> int:
        """How many it takes in the file."""
        return round(math.prod(self.shape) * _BYTES.get(self.kind, 1))


def read_headers(path: Path) -> list[Header]:
    """Read what a file says about its tensors.

    Raises:
        CheckpointError: it is truncated, damaged or of another kind.
    """
    if path.suffix == GGUF:
        entries = gguf_file.entries(path)
        return [Header(path, key, shape, kind) for key, shape, kind in entries]
    with _opened_safetensors(path, "cpu") as file:
        slices = ((key, file.get_slice(key)) for key in file.keys())  # noqa: SIM118 - not a mapping
        return [Header(path, key, tuple(part.get_shape()), str(part.get_dtype())) for key, part in slices]


@contextmanager
def opened(path: Path, device: torch.device) -> Iterator[Callable[[Header], Tensor]]:
    """Open a file to read tensors by their headers, straight to ``device`` where the format allows it.

    Raises:
        CheckpointError: it turns out to be damaged.
    """
    if path.suffix == GGUF:
        with gguf_file.opened(path) as tensor:
            yield lambda header: header.turn(tensor(header.key, header.rows).reshape(header.shape).to(device))
        return
    with _opened_safetensors(path, str(device)) as file:
        yield lambda header: header.turn(_read_safetensors(file, header).reshape(header.shape))


def _read_safetensors(file: Any, header: Header) -> Tensor:
    if header.rows is None:
        whole: Tensor = file.get_tensor(header.key)
        return whole
    part: Tensor = file.get_slice(header.key)[header.rows]
    return part


@contextmanager
def _opened_safetensors(path: Path, device: str) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device=device) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{quoted(path)} is truncated or not a safetensors file: {tell(error)}; fetch it again."
        ) from error
