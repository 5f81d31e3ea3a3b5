"""A table of words, which a GPU reads in host memory: it is large, and a prompt needs few of its rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from twinshot_kernels import embed_rows


class WordTable(nn.Embedding):
    """Embeds token ids; where its module is on a GPU, the table itself lies in pinned host memory."""

    def forward(self, ids: Tensor, factor: float = 1.0) -> Tensor:
        """Embed ids ``[...]`` as ``[..., embedding_dim]``; see :func:`twinshot_kernels.embed_rows`."""
        return embed_rows(self.weight, ids, factor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WordTable:
        """Do what moves or changes a module, but stay on the host."""
        changed = fn(self.weight.detach()[:0])
        if not changed.is_cuda:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            return self
        table = torch.empty(self.weight.shape, dtype=changed.dtype, pin_memory=True)
        if not self.weight.is_meta:
            table.copy_(self.weight.detach())
        self.weight = nn.Parameter(table, requires_grad=False)
        return self
