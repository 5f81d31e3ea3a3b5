"""How every operation of this package is registered and how a call finds its implementation.

A custom operator has its reference on the CPU and its Triton kernel on CUDA; torch's dispatcher chooses.
Kernels compute no gradients, so a call that will be differentiated runs the reference itself; so does one
that ``torch.export`` records, as other runtimes know torch's operators and not ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from twinshot_kernels._triton import HAS_TRITON

Implementation = Callable[..., Any]


def register(
    name: str, reference: Implementation, launch: Implementation, mutates: Sequence[str] = ()
) -> Implementation:
    """Register ``twinshot::name``.

    Args:
        name: the operator's name.
        reference: plain torch. Its annotations are the operator's schema, and, run on fake tensors, it says
            which shapes and strides come out; so ``launch`` must return the same.
        launch: runs the kernel on CUDA tensors; replaced by ``reference`` where Triton is not installed.
        mutates: names of the arguments that are written.

    Returns:
        What calls the operator, or the reference while a model is exported.
    """
    operator = torch.library.custom_op(
        f"twinshot::{name}", reference, mutates_args=mutates, device_types="cpu"
    )
    operator.register_kernel("cuda")(_with_defaults(reference, launch) if HAS_TRITON else reference)
    operator.register_fake(reference)

    def call(*arguments: Any) -> Any:
        return (reference if torch.compiler.is_exporting() else operator)(*arguments)

    return call


def _with_defaults(reference: Implementation, launch: Implementation) -> Implementation:
    """Give ``launch`` every argument: torch leaves trailing ones out that equal the schema's defaults."""
    defaults = [parameter.default for parameter in inspect.signature(reference).parameters.values()]

    def call(*arguments: Any) -> Any:
        return launch(*arguments, *defaults[len(arguments) :])

    return call


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Say whether autograd will ask for the gradient of any of ``tensors``."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
