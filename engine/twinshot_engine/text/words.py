"""A table of words in host memory: it is large, and a prompt reads few of its rows."""

from __future__ import annotations

from torch import nn


def move_to_host(words: nn.Embedding) -> None:
    """Move a table to pinned host memory, where :func:`twinshot_kernels.embed_rows` reads it."""
    if words.weight.is_cuda:
        words.weight = nn.Parameter(words.weight.cpu().pin_memory(), requires_grad=False)
