"""Captions that were encoded before, least recently used last, within a bound of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

from torch import Tensor

Caption = tuple[Tensor, ...]
"""All that a transformer reads of prompts; each tensor's first dimension is the batch."""


@dataclass(slots=True)
class CacheStatistics:
    """How often a caption was there, how often not, and what is held now."""

    hits: int = 0
    misses: int = 0
    entries: int = 0
    bytes: int = 0


@dataclass(slots=True)
class CaptionCache:
    """Maps a prompt's token ids to its caption tokens on the device.

    Attributes:
        max_bytes: most bytes held; 0 keeps nothing. What alone is larger is never kept.
        statistics: counted since the start.
    """

    max_bytes: int
    statistics: CacheStatistics = field(default_factory=CacheStatistics)
    _kept: OrderedDict[Hashable, Caption] = field(default_factory=OrderedDict)

    def get(self, key: Hashable) -> Caption | None:
        """Return what is kept under ``key``, or None; counted as a hit or a miss."""
        found = self._kept.get(key)
        if found is None:
            self.statistics.misses += 1
            return None
        self.statistics.hits += 1
        self._kept.move_to_end(key)
        return found

    def put(self, key: Hashable, caption: Caption) -> None:
        """Keep ``caption``, letting go of the least recently used until it fits."""
        if _nbytes(caption) > self.max_bytes or key in self._kept:
            return
        self._kept[key] = caption
        self.statistics.bytes += _nbytes(caption)
        while self.statistics.bytes > self.max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.statistics.bytes -= _nbytes(oldest)
        self.statistics.entries = len(self._kept)

    def clear(self) -> None:
        """Let go of everything; the counts of hits and misses stay."""
        self._kept.clear()
        self.statistics.entries = self.statistics.bytes = 0


def _nbytes(caption: Caption) -> int:
    return sum(tensor.nbytes for tensor in caption)
