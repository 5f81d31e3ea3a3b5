"""GGUF, the format of quantised checkpoints: read by the ``gguf`` package, dequantised on arrival.

The file's own ``general.architecture`` is not asked, as published files of one model differ in it; tensors'
names and shapes say what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from twinshot_engine.errors import CheckpointError
from twinshot_engine.files import quoted, tell

if TYPE_CHECKING:
    from gguf import GGUFReader

QUANTIZED = {
    "Q8_0": 34 / 32,
    "Q6_K": 210 / 256,
    "Q5_K": 176 / 256,
    "Q5_1": 24 / 32,
    "Q5_0": 22 / 32,
    "Q4_K": 144 / 256,
    "Q4_1": 20 / 32,
    "Q4_0": 18 / 32,
    "Q3_K": 110 / 256,
    "Q2_K": 84 / 256,
}
"""The types with a scale a block that are read, and their bytes an element; fewer make poorer pictures."""

Entry = tuple[str, tuple[int, ...], str]
"""Name, shape and type of a tensor."""


def entries(path: Path) -> list[Entry]:
    """Read what a file says about its tensors.

    Raises:
        CheckpointError: it is truncated or no GGUF file.
    """
    return [
        (tensor.name, tuple(int(side) for side in reversed(tensor.shape)), tensor.tensor_type.name)
        for tensor in _reader(path).tensors
    ]


@contextmanager
def opened(path: Path) -> Iterator[Callable[[str, slice | None], Tensor]]:
    """Open a file to read tensors, or some rows of them, by name: fp32 on the host, however they are stored.

    Raises:
        CheckpointError: it turns out to be damaged.
    """
    from gguf import dequantize

    tensors = {tensor.name: tensor for tensor in _reader(path).tensors}

    def read(name: str, rows: slice | None) -> Tensor:
        stored = tensors[name]
        # Blocks lie within rows, so that rows can be taken before they are dequantised.
        data = stored.data if rows is None else stored.data[rows]
        return torch.from_numpy(np.array(dequantize(data, stored.tensor_type), np.float32))

    yield read


def _reader(path: Path) -> GGUFReader:
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except Exception as error:  # what the package raises depends on where a file is damaged
        raise CheckpointError(
            f"{quoted(path)} is truncated or not a GGUF file: {tell(error)}; fetch it again."
        ) from error
