"""Averages of weights: the teacher that TwinFlow learns from, and the model that is exported."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Copied = TypeVar("Copied", bound=nn.Module)


def frozen_copy(module: Copied) -> Copied:
    """A copy of a module that is never trained."""
    return deepcopy(module).requires_grad_(requires_grad=False).eval()


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; all of it unless it is sharded."""
    holder: Any = tensor
    part: Tensor = holder.to_local() if hasattr(holder, "to_local") else tensor
    return part


def parameters_of(**parts: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of several modules, each named "part.name"."""
    return {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}


class RunningAverage:
    """An exponential moving average whose decay approaches its goal from 0.

    The released trainer's rule: the first update copies, and after each the decay d moves by
    (1 - d)(goal - d) / 2, so that early averages follow closely. A goal of .99 gives 0, .495, .62, .69, ...
    """

    def __init__(self, pairs: Iterable[tuple[Tensor, Tensor]], decay: float) -> None:
        """Average the second of each pair of tensors into the first."""
        self._averages, self._sources = zip(*pairs, strict=True)
        self._goal = decay
        # Kept on the device, since a CUDA graph repeats the same launches while the decay goes on.
        self._decay = torch.zeros((), dtype=torch.float64, device=local(self._averages[0]).device)

    @property
    def decay(self) -> float:
        """The share of the past in the next update."""
        return float(self._decay)

    @decay.setter
    def decay(self, value: float) -> None:
        self._decay.fill_(value)

    @classmethod
    def of(cls, average: nn.Module, source: nn.Module, decay: float) -> RunningAverage:
        """Average the parameters of a module into those of its copy."""
        return cls(zip(average.parameters(), source.parameters(), strict=True), decay)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the sources' current weights."""
        share = (1 - self._decay).float()
        for average, source in zip(self._averages, self._sources, strict=True):
            local(average).lerp_(local(source).detach(), share.to(average.dtype))
        self._decay += (1 - self._decay) * (self._goal - self._decay) / 2
