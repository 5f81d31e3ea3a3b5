"""Triton where it is installed, and what stands for it where it is not.

Kernels are written beside their references, so their files must load on machines without Triton; there
``jit`` leaves a function alone, and nothing ever launches it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ImportError:
    triton = tl = None
    HAS_TRITON = False

__all__ = ["HAS_TRITON", "jit", "tl", "triton"]


def jit(kernel: Callable[..., Any]) -> Any:
    """Compile ``kernel`` with Triton when it is first launched."""
    return triton.jit(kernel) if HAS_TRITON else kernel
