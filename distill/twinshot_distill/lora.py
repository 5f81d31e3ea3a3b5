"""Low-rank adapters on linear layers, as TwinFlow trains them: one that learns, its average, or neither.

W x + (alpha / rank) B A x (Hu et al., arXiv 2106.09685). A layer holds two pairs of A and B: `default` is the
student, `old` its running average; with both disabled the layer is the frozen start. So student, teacher and
start share one copy of the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinshot_distill.strictness import STRICT, check

Adapter = Literal["default", "old", "disabled"]


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Which layers get adapters of which size.

    Attributes:
        rank: of the product B A.
        alpha: the product is scaled by alpha / rank.
        targets: ends of the layers' dotted names, such as "to_q"; empty takes the family's own.
    """

    __pydantic_config__ = STRICT

    rank: int = 64
    alpha: float = 64.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(self, ("rank", "1 or more", self.rank >= 1), ("alpha", "above 0", 0 < self.alpha < math.inf))


class LoraLinear(nn.Module):
    """A frozen linear layer with two adapters."""

    def __init__(self, base: nn.Linear, settings: LoraSettings) -> None:
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.scale = settings.alpha / settings.rank
        self.adapter: Adapter = "default"
        device = base.weight.device
        for name in ("default", "old"):
            down = nn.Linear(base.in_features, settings.rank, bias=False, device=device)
            up = nn.Linear(settings.rank, base.out_features, bias=False, device=device)
            nn.init.kaiming_uniform_(down.weight, a=5**0.5)
            nn.init.zeros_(up.weight)
            self.add_module(f"{name}_down", down)
            self.add_module(f"{name}_up", up)
        for module in (self.get_submodule("old_down"), self.get_submodule("old_up")):
            module.requires_grad_(requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer and its adapter to [..., in_features]."""
        out = self._frozen(x)
        if self.adapter == "disabled":
            return out
        down, up = (self.get_submodule(f"{self.adapter}_{part}") for part in ("down", "up"))
        low: Tensor = up(down(x))
        return out + (self.scale * low).to(out.dtype)

    def _frozen(self, x: Tensor) -> Tensor:
        """The layer alone; autocast off and weights in bf16 is Z-Image's time, which is fp32 all the way."""
        weight, bias = self.base.weight, self.base.bias
        if x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type):
            out: Tensor = self.base(x)
            return out
        return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight of one plain layer that does the same as the student: [out, in] fp32."""
        down, up = self.weight_of("default_down"), self.weight_of("default_up")
        return self.base.weight.float() + self.scale * up.float() @ down.float()

    def weight_of(self, name: str) -> nn.Parameter:
        """The weight of `default_down`, `default_up`, `old_down` or `old_up`."""
        return self.get_submodule(name).get_parameter("weight")


def add_adapters(model: nn.Module, settings: LoraSettings, targets: Sequence[str]) -> int:
    """Freeze a model and put adapters on its linear layers whose names end with one of the targets.

    Returns how many layers have them. Raises ValueError where a target ends no name.
    """
    model.requires_grad_(requires_grad=False)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = [name for name in linear if any(f".{name}".endswith(f".{end}") for end in targets)]
    unused = [end for end in targets if not any(f".{name}".endswith(f".{end}") for name in chosen)]
    if unused or not chosen:
        raise ValueError(f"no linear layer's name ends with {unused or list(targets)}")
    for name in chosen:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, LoraLinear(linear[name], settings))
    return len(chosen)


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The layers with adapters, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


@contextmanager
def using(layers: Sequence[LoraLinear], adapter: Adapter) -> Iterator[None]:
    """Have layers use another adapter for a while; then they use `default` again."""
    for layer in layers:
        layer.adapter = adapter
    try:
        yield
    finally:
        for layer in layers:
            layer.adapter = "default"


def adapter_pairs(layers: Mapping[str, LoraLinear]) -> list[tuple[Tensor, Tensor]]:
    """Each tensor of `old` with its counterpart of `default`, for a running average."""
    return [
        (
            layer.weight_of(f"old_{part}"),
            layer.weight_of(f"default_{part}"),
        )
        for layer in layers.values()
        for part in ("down", "up")
    ]


def adapter_state(layers: Mapping[str, LoraLinear]) -> dict[str, Tensor]:
    """The student's adapters under diffusers' and PEFT's names; B is scaled, so alpha is the rank."""
    return {
        f"transformer.{name}.lora_{letter}.weight": factor * layer.weight_of(f"default_{part}")
        for name, layer in layers.items()
        for letter, part, factor in (("A", "down", 1.0), ("B", "up", layer.scale))
    }
