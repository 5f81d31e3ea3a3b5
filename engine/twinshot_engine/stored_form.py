"""The form in which checkpoints store a part, told from what reads it.

A part that serves has packed parameters and lacks what is folded at load. Which tensors a checkpoint stores
in their place, and in which shapes, the slots say; so no second model definition has to be kept beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from twinshot_engine.weights import Slot

Shapes = Mapping[str, tuple[int, ...]]
"""Stored names and their shapes."""


def stored_shapes(module: nn.Module, slots: Mapping[str, Slot]) -> dict[str, tuple[int, ...]]:
    """Tell which tensors fill ``module``, by their stored names."""
    parameters = dict(module.named_parameters())
    return {name: tuple(slot.place(parameters[slot.parameter]).shape) for name, slot in slots.items()}


def stored_form(shapes: Shapes) -> nn.Module:
    """Build a module on the meta device that has parameters of these names and shapes, and nothing else."""
    root = nn.Module()
    for name, shape in shapes.items():
        *path, last = name.split(".")
        parent = root
        for step in path:
            if step not in parent._modules:  # noqa: SLF001 -- getattr would find a module's own attributes
                parent.add_module(step, nn.Module())
            parent = parent.get_submodule(step)
        parent.register_parameter(last, nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False))
    return root
