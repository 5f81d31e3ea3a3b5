"""Muon (Jordan et al., 2024) for many small matrices: those of one shape are orthogonalised together.

`torch.optim.Muon` takes a matrix at a time, some thirty launches each: with the miniature's hundred matrices
that is a good part of a step. The rule is the same, with the step scaled to AdamW's size (Liu et al., arXiv
2502.16982), and it can be part of a CUDA graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_SMALLEST_NORM = 1e-7
_SHARE_OF_ADAMW = 0.2
"""AdamW's updates have about this root mean square."""


def orthogonalised(matrices: Tensor) -> Tensor:
    """Push the singular values of matrices [N, A, B] towards 1 by Newton-Schulz iterations, in bf16."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.flatten(1).norm(dim=1).clamp_min(_SMALLEST_NORM)[:, None, None]
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class StackedMuon(torch.optim.Optimizer):
    """Muon with Nesterov momentum on matrices of few shapes.

    Args:
        matrices: parameters with two axes.
        lr: learning rate; a tensor may change between replays of a CUDA graph.
        momentum: share of the past in the average of gradients.
        weight_decay: taken off at the learning rate.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        lr: float | Tensor,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "capturable": True}
        super().__init__(matrices, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        if closure is not None:
            raise ValueError("a closure is not supported: compute gradients before the step")
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for matrices in by_shape.values():
                self._move(matrices, group)

    def _move(self, matrices: list[nn.Parameter], group: dict[str, Any]) -> None:
        averages = [self._average(matrix) for matrix in matrices]
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        ahead = torch.stack(gradients).lerp(torch.stack(averages), group["momentum"])
        scale = _SHARE_OF_ADAMW * max(matrices[0].shape) ** 0.5
        updates = orthogonalised(ahead).to(ahead.dtype) * (-group["lr"] * scale)
        weights: list[Tensor] = [*matrices]
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, list(updates.unbind()))

    def _average(self, matrix: nn.Parameter) -> Tensor:
        memory = self.state[matrix]
        if not memory:
            memory["momentum_buffer"] = torch.zeros_like(matrix)
        average: Tensor = memory["momentum_buffer"]
        return average
