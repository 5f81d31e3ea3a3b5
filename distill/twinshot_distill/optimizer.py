"""The optimisers and their learning rate: one schedule over the whole run, one clipped step at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from twinshot_distill.averages import local
from twinshot_distill.muon import StackedMuon
from twinshot_distill.strictness import STRICT, check

_MATRICES = ("attention.to_", "feed_forward.", "self_attn.", "gate_proj", "up_proj", "down_proj")
"""Names of the matrices in blocks that Muon takes."""


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """How weights move.

    Attributes:
        name: "adamw", "radam", or "muon": Muon (Jordan et al., 2024) for the matrices inside blocks, with its
            step scaled to AdamW's size, and AdamW for the rest.
        learning_rate: after warming up.
        betas: of Adam's averages.
        weight_decay: of AdamW and RAdam.
        warm_up: steps in which the rate rises to its value.
        final_share: of the rate that is left at the end of a cosine; 1 keeps it constant.
        clip: greatest norm of the gradient.
    """

    __pydantic_config__ = STRICT

    name: Literal["adamw", "radam", "muon"] = "adamw"
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warm_up: int = 0
    final_share: float = 1.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        check(
            self,
            ("learning_rate", "above 0", 0 < self.learning_rate < math.inf),
            ("betas", "two numbers from 0 to below 1", all(0 <= beta < 1 for beta in self.betas)),
            ("weight_decay", "0 or more", 0 <= self.weight_decay < math.inf),
            ("warm_up", "0 or more", self.warm_up >= 0),
            ("final_share", "between 0 and 1", 0 <= self.final_share <= 1),
            ("clip", "above 0", self.clip > 0),
        )


class Optimizer:
    """Moves named parameters; see :class:`OptimizerSettings`."""

    def __init__(
        self, named: Mapping[str, nn.Parameter], settings: OptimizerSettings, *, capturable: bool = False
    ) -> None:
        """Take charge of parameters.

        Args:
            named: the parameters.
            settings: how they move.
            capturable: keep the learning rate on the device, so that a CUDA graph can hold :meth:`move`.
        """
        self._named, self._settings = dict(named), settings
        self._parts = list(_parts(self._named, settings, capturable=capturable))

    def step(self, step: int, progress: float) -> Tensor:
        """Clip the gradients and move the weights, unless a gradient is not finite; then forget them.

        Args:
            step: from 0, for warming up.
            progress: share of the run that has passed, 0 to 1, for the cosine.

        Returns:
            The gradient's norm before clipping; where it is not finite, no weight has moved.
        """
        norm = self.clip()
        if bool(torch.isfinite(norm)):
            self.set_rate(self.rate(step, progress))
            self.move()
        self.forget()
        return norm

    def clip(self) -> Tensor:
        """Scale the gradients down to the greatest norm allowed; returns the norm they had."""
        norm: Any = torch.nn.utils.clip_grad_norm_(list(self._named.values()), self._settings.clip)
        whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return whole

    def set_rate(self, rate: float) -> None:
        """Say how far the next moves go."""
        for part in self._parts:
            for group in part.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    def move(self) -> None:
        """Move the weights along their gradients."""
        for part in self._parts:
            part.step()

    def forget(self) -> None:
        """Drop the gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    def rate(self, step: int, progress: float) -> float:
        """The learning rate of a step."""
        settings = self._settings
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        share = settings.final_share + (1 - settings.final_share) * cosine
        return settings.learning_rate * share * min(1.0, (step + 1) / max(settings.warm_up, 1))

    def tensors(self) -> dict[str, Tensor]:
        """What the optimisers remember, by parameter and quantity; only this process's part of it."""
        names = {id(parameter): name for name, parameter in self._named.items()}
        return {
            f"{names[id(parameter)]}:{key}": local(value)
            for part in self._parts
            for parameter, memory in part.state.items()
            for key, value in memory.items()
            if isinstance(value, Tensor)
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`tensors` gave."""
        owners = {id(p): part for part in self._parts for group in part.param_groups for p in group["params"]}
        for name, value in tensors.items():
            parameter_name, key = name.rsplit(":", 1)
            parameter = self._named[parameter_name]
            owner = owners[id(parameter)]
            if value.ndim == 0:
                # Where a fused optimiser counts its steps, and where others do.
                on_device = owner.defaults.get("fused") or owner.defaults.get("capturable")
                place = parameter.device if on_device else torch.device("cpu")
                owner.state[parameter][key] = value.to(place, copy=True)
            else:
                owner.state[parameter][key] = _as_sharded(value, parameter)


def _as_sharded(value: Tensor, parameter: Any) -> Tensor:
    """A part of a quantity, sharded as the parameter it belongs to."""
    moved = value.to(local(parameter).device, copy=True)
    if not hasattr(parameter, "device_mesh"):
        return moved
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        moved,
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
        run_check=False,
    )


def _parts(
    named: dict[str, nn.Parameter], settings: OptimizerSettings, *, capturable: bool
) -> Iterator[torch.optim.Optimizer]:
    rate, betas, decay = settings.learning_rate, settings.betas, settings.weight_decay

    def start() -> float | Tensor:
        return torch.tensor(rate, device=next(iter(named.values())).device) if capturable else rate

    if settings.name == "radam":
        yield torch.optim.RAdam(
            named.values(),
            lr=start(),
            betas=betas,
            weight_decay=decay,
            decoupled_weight_decay=True,
            capturable=capturable,
        )
        return
    matrices, others = _split(named) if settings.name == "muon" else ([], list(named.values()))
    yield torch.optim.AdamW(
        others, lr=start(), betas=betas, weight_decay=decay, fused=True, capturable=capturable
    )
    if any(hasattr(matrix, "device_mesh") for matrix in matrices):
        yield torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    elif matrices:
        yield StackedMuon(matrices, start())


def _split(named: Mapping[str, nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices of attention and feed-forward layers, and all other parameters."""
    inside = {name for name, p in named.items() if p.ndim == 2 and any(key in name for key in _MATRICES)}
    matrices = [parameter for name, parameter in named.items() if name in inside]
    return matrices, [parameter for name, parameter in named.items() if name not in inside]
