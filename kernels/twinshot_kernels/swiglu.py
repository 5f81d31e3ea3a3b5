"""Gated activation: ``y = silu(gate) * up``.

The widest tensors of a block pass through here, so it must read both inputs once and write one output.
"""

from torch import Tensor
from torch.nn import functional


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """Gate ``up`` in plain torch; see :func:`swiglu`."""
    return functional.silu(gate) * up


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Multiply ``up`` by the SiLU of ``gate``.

    Args:
        gate: ``[..., N]``.
        up: the same shape and type.

    Returns:
        A tensor of that shape and type.

    Source: Shazeer, arXiv 2002.05202.
    """
    return swiglu_reference(gate, up)
