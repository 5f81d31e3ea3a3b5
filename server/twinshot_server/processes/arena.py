"""Shared memory in slots, one an image: an engine writes pixels, the encoder leaves a file in their place."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import weakref

import numpy as np
from numpy.typing import NDArray

from twinshot_engine.types import Size

LARGEST_SIDE = 2048
# A file may be larger than its pixels: noise does not compress.
SLOT_BYTES = LARGEST_SIDE * LARGEST_SIDE * 3 * 5 // 4


class Arena:
    """`slots` pieces of memory that processes share through a file without a name.

    Pages count only once they are written to. The memory is gone when the last process is, however it ended.
    """

    def __init__(self, slots: int, descriptor: int | None = None) -> None:
        self.slots = slots
        self.descriptor = _anonymous_file(slots * SLOT_BYTES) if descriptor is None else descriptor
        self._close = weakref.finalize(self, os.close, self.descriptor)
        self._memory = mmap.mmap(self.descriptor, slots * SLOT_BYTES)

    def write_pixels(self, slot: int, pixels: NDArray[np.uint8]) -> None:
        """Copy pixels (uint8, [height, width, 3]) into a slot."""
        height, width, _ = pixels.shape
        self.pixels(slot, (width, height))[...] = pixels

    def pixels(self, slot: int, size: Size) -> NDArray[np.uint8]:
        """A slot's pixels, uint8 [height, width, 3], without a copy. Raises ValueError if they cannot fit."""
        width, height = size
        if width * height * 3 > SLOT_BYTES:
            raise ValueError(f"{width}x{height} pixels do not fit into {SLOT_BYTES} bytes")
        flat = np.frombuffer(self._memory, np.uint8, width * height * 3, slot * SLOT_BYTES)
        return flat.reshape(height, width, 3)

    def write_file(self, slot: int, content: bytes) -> None:
        """Put a file into a slot. Raises ValueError if it does not fit."""
        if len(content) > SLOT_BYTES:
            raise ValueError(f"a file of {len(content)} bytes does not fit into {SLOT_BYTES}")
        start = slot * SLOT_BYTES
        self._memory[start : start + len(content)] = content

    def read_file(self, slot: int, length: int) -> bytes:
        """A copy of the file in a slot."""
        start = slot * SLOT_BYTES
        return self._memory[start : start + length]

    def close(self) -> None:
        """Let go of the memory."""
        self._close()
        with contextlib.suppress(BufferError):  # an array still looks at it; it goes with the array
            self._memory.close()


def _anonymous_file(size: int) -> int:
    # A memfd counts against no mount; in containers /dev/shm often holds only 64 MB.
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("twinshot-images")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
