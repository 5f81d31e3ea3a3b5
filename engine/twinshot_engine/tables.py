"""Tables that depend on shapes alone: made once and kept, outside of modules' buffers."""

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

_Key = TypeVar("_Key", bound=Hashable)
_Table = TypeVar("_Table")


def keep(kept: dict[_Key, _Table], key: _Key, build: Callable[[], _Table]) -> _Table:
    """Return what is kept under a key, or build it.

    While a model is compiled or exported nothing is kept: the table becomes part of the graph, and an open
    length has no value to find it by.
    """
    if torch.compiler.is_compiling():
        return build()
    if key not in kept:
        # A table made in inference mode could not be used by a later training step.
        with torch.inference_mode(mode=False), torch.no_grad():
            kept[key] = build()
    return kept[key]
