"""What the three stages share: optimisers, the clock that drives their learning rate, and averages."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from twinshot_distill.report import say

_FIRST_STEPS = 3

Averaged = TypeVar("Averaged", bound=nn.Module)


class Clock:
    """Counts steps against a budget of seconds; reports progress now and then."""

    def __init__(self, name: str, seconds: float, *, report_every: float = 15.0) -> None:
        self.name, self.seconds, self.step = name, seconds, 0
        self._every = report_every
        self._start = self._reported = time.monotonic()
        self._reported_step = 0

    @property
    def progress(self) -> float:
        """Share of the budget that has passed, 0..1; compilation in the first steps does not count."""
        if self.step < _FIRST_STEPS:
            return 0.0
        return min(1.0, (time.monotonic() - self._start) / self.seconds)

    def steps(self) -> Iterator[int]:
        """Step numbers until the budget is spent."""
        while self.progress < 1:
            yield self.step
            self.step += 1
            if self.step == _FIRST_STEPS:
                self._start = self._reported = time.monotonic()

    def report(self, batch: int, **figures: Tensor) -> None:
        """Print throughput, remaining time and figures if it is time to."""
        now = time.monotonic()
        if now - self._reported < self._every:
            return
        rate = (self.step - self._reported_step) / (now - self._reported)
        self._reported, self._reported_step = now, self.step
        values = "  ".join(f"{name} {float(value):.4f}" for name, value in figures.items())
        left = max(0.0, self.seconds - (now - self._start))
        say(f"{self.name} step {self.step}  {values}  {rate * batch:.0f} images/s  {left:.0f} s left")


class Optimizer:
    """Muon for the matrices inside blocks, AdamW for the rest, one cosine schedule for both.

    Muon (Jordan et al., 2024) orthogonalises a matrix's momentum; with its step scaled to AdamW's size
    both share a learning rate. `matrices` may be empty.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.98),
        final_share: float = 0.05,
        warm_up: int = 300,
    ) -> None:
        self._rate, self._floor, self._warm_up = learning_rate, final_share, warm_up
        self._parameters = [*(matrices := list(matrices)), *(others := list(others))]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=learning_rate, betas=betas, weight_decay=0.0, fused=True)
        ]
        if matrices:
            muon = torch.optim.Muon(
                matrices, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
            )
            self._parts.append(muon)

    def step(self, loss: Tensor, step: int, progress: float) -> Tensor:
        """Back-propagate, clip the gradient to norm 1, move the weights; returns the norm before clipping."""
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        cosine = self._floor + (1 - self._floor) * 0.5 * (1 + math.cos(math.pi * progress))
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = self._rate * cosine * min(1.0, (step + 1) / self._warm_up)
            part.step()
            part.zero_grad(set_to_none=True)
        return norm


_MATRICES = ("attention.to_", "feed_forward.", "self_attn.", "gate_proj", "up_proj", "down_proj")


def block_matrices(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split parameters into matrices of attention and feed-forward layers, and all others."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        inside = parameter.ndim == 2 and any(key in name for key in _MATRICES)
        (matrices if inside else others).append(parameter)
    return matrices, others


class Average(Generic[Averaged]):
    """An exponential moving average of a module's weights: `module` holds it, ready for use."""

    def __init__(self, source: Averaged, decay: float) -> None:
        self.module = deepcopy(source).requires_grad_(requires_grad=False).eval()
        self.decay = decay
        self._pairs = list(zip(self.module.parameters(), source.parameters(), strict=True))
        self._updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the source's current weights; early on the average follows them more closely."""
        self._updates += 1
        decay = min(self.decay, self._updates / (self._updates + 9))
        torch._foreach_lerp_(
            [average for average, _ in self._pairs], [now for _, now in self._pairs], 1 - decay
        )
