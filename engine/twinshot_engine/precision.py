"""Number formats: what is quantised to fp8, and the activations that carry a scale a row.

``fp32`` is the reference, ``bf16`` the default on a GPU. ``fp8`` stores the large projections as E4M3 with
one scale an output channel and quantises their inputs row by row while they are produced, so it costs no pass
of its own. Everything else (embedders, modulation, norms, residual stream, attention, decoder) stays bf16.
Source: Micikevicius et al., arXiv 2209.05433 (E4M3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinshot_kernels import (
    gated_residual_layer_norm,
    gated_residual_layer_norm_fp8,
    gated_residual_norm,
    gated_residual_norm_fp8,
    geglu,
    geglu_fp8,
    gelu_fp8,
    layer_norm,
    layer_norm_fp8,
    linear_gelu,
    quantize_rows,
    residual_norm,
    residual_norm_fp8,
    rms_norm,
    rms_norm_fp8,
    scaled_linear,
    swiglu,
    swiglu_fp8,
)

FP8 = torch.float8_e4m3fn
_MULTIPLE = 16
"""Rows and columns of an fp8 matrix must be multiples of this, as its tensor cores read them."""


class QuantizedRows(NamedTuple):
    """Values ``[..., N]`` in E4M3 and what each row is to be multiplied by, ``[..., 1]`` fp32."""

    values: Tensor
    scale: Tensor


Activation = Tensor | QuantizedRows
"""What a :class:`Projection` reads."""


class Projection(nn.Module):
    """A linear layer whose weight ``[out, in]`` is bf16, fp32 or, with a scale a row, fp8."""

    weight_scale: Tensor | None

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_channels), requires_grad=False) if bias else None
        self.register_buffer("weight_scale", None, persistent=False)

    @property
    def quantized(self) -> bool:
        """Whether the weight is fp8, so that the input should be too."""
        return self.weight_scale is not None

    def quantize(self) -> None:
        """Change the format of a projection on the meta device to fp8; its weight is filled later.

        Raises:
            ValueError: a side is not a multiple of 16.
        """
        if any(side % _MULTIPLE for side in self.weight.shape):
            raise ValueError(
                f"a projection of {list(self.weight.shape)} cannot be fp8: its sides must be multiples of "
                f"{_MULTIPLE}"
            )
        meta = torch.empty_like(self.weight, dtype=FP8)
        self.weight = nn.Parameter(meta, requires_grad=False)
        self.weight_scale = torch.empty(meta.shape[0], dtype=torch.float32, device=meta.device)

    def forward(self, x: Activation) -> Tensor:
        """Project ``[..., in]`` to ``[..., out]``; what is not quantised yet and must be, is."""
        if self.weight_scale is None:
            return functional.linear(_plain(x), self.weight, self.bias)
        rows = x if isinstance(x, QuantizedRows) else QuantizedRows(*quantize_rows(x))
        return scaled_linear(*rows, self.weight, self.weight_scale, bias=self.bias)

    def project_into(self, out: Tensor, x: Activation) -> None:
        """Project ``[B, N, in]`` into ``out`` ``[B, N, out]``, which may be some rows of each image's.

        A layer with a bias only. Images are projected one by one, as their rows need not lie side by side.
        """
        if torch.compiler.is_exporting():
            out.copy_(self(x))  # in a graph of an open batch images cannot be counted
            return
        if self.weight_scale is None:
            for place, image in zip(out, _plain(x), strict=True):
                torch.addmm(self.bias, image, self.weight.t(), out=place)  # type: ignore[arg-type]
            return
        rows = x if isinstance(x, QuantizedRows) else QuantizedRows(*quantize_rows(x))
        for place, values, scale in zip(out, rows.values, rows.scale, strict=True):
            scaled_linear(values, scale, self.weight, self.weight_scale, bias=self.bias, out=place)


def _plain(x: Activation) -> Tensor:
    if isinstance(x, QuantizedRows):
        raise TypeError("quantised rows reached a projection whose weight is not fp8")
    return x


def quantize_projections(module: nn.Module, chosen: Callable[[str], bool]) -> None:
    """Make every projection fp8 whose name in ``module`` is ``chosen``; for a module on the meta device."""
    for name, part in module.named_modules():
        if isinstance(part, Projection) and chosen(name):
            part.quantize()


def takes_rows(layer: nn.Module) -> bool:
    """Whether whoever feeds ``layer`` should hand it quantised rows."""
    return isinstance(layer, Projection) and layer.quantized


def normalize(x: Tensor, scale: Tensor, eps: float, *, quantized: bool) -> Activation:
    """RMS-normalise ``[..., N]``; see :func:`twinshot_kernels.rms_norm`."""
    return QuantizedRows(*rms_norm_fp8(x, scale, eps)) if quantized else rms_norm(x, scale, eps)


def add_normalize(
    x: Tensor, y: Tensor, scale: Tensor, eps: float, *, quantized: bool
) -> tuple[Tensor, Activation]:
    """Add ``y`` to the stream and normalise the sum; see :func:`twinshot_kernels.residual_norm`."""
    if quantized:
        stream, *rows = residual_norm_fp8(x, y, scale, eps)
        return stream, QuantizedRows(*rows)
    return residual_norm(x, y, scale, eps)


def gate_add_normalize(
    x: Tensor, y: Tensor, gain: Tensor, scale: Tensor, eps: float, *, quantized: bool
) -> tuple[Tensor, Activation]:
    """Add the normalised, gated ``y`` and normalise; see :func:`twinshot_kernels.gated_residual_norm`."""
    if quantized:
        stream, *rows = gated_residual_norm_fp8(x, y, gain, scale, eps)
        return stream, QuantizedRows(*rows)
    return gated_residual_norm(x, y, gain, scale, eps)


def center(x: Tensor, scale: Tensor, shift: Tensor, eps: float, *, quantized: bool) -> Activation:
    """Layer-normalise ``[..., N]``; see :func:`twinshot_kernels.layer_norm`."""
    if quantized:
        return QuantizedRows(*layer_norm_fp8(x, scale, shift, eps))
    return layer_norm(x, scale, shift, eps)


def add_center(
    x: Tensor, y: Tensor, gain: Tensor, scale: Tensor, shift: Tensor, eps: float, *, quantized: bool
) -> tuple[Tensor, Activation]:
    """Add the gated ``y`` and layer-normalise; see :func:`twinshot_kernels.gated_residual_layer_norm`."""
    if quantized:
        stream, *rows = gated_residual_layer_norm_fp8(x, y, gain, scale, shift, eps)
        return stream, QuantizedRows(*rows)
    return gated_residual_layer_norm(x, y, gain, scale, shift, eps)


def gate(gate_and_up: Tensor, *, quantized: bool) -> Activation:
    """Apply SwiGLU to the halves of ``[..., 2N]``; see :func:`twinshot_kernels.swiglu`."""
    halves = gate_and_up.chunk(2, dim=-1)
    return QuantizedRows(*swiglu_fp8(*halves)) if quantized else swiglu(*halves)


def gate_gelu(gate_and_up: Tensor, *, quantized: bool) -> Activation:
    """Apply GeGLU to the halves of ``[..., 2N]``; see :func:`twinshot_kernels.geglu`."""
    halves = gate_and_up.chunk(2, dim=-1)
    return QuantizedRows(*geglu_fp8(*halves)) if quantized else geglu(*halves)


def modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float, *, quantized: bool) -> Activation:
    """Layer-normalise ``[..., N]``, scale and shift; see :func:`twinshot_kernels.layer_norm`."""
    if quantized:
        return QuantizedRows(*layer_norm_fp8(x, scale, shift, eps))
    return layer_norm(x, scale, shift, eps)


def gate_add_modulate(
    x: Tensor, y: Tensor, gain: Tensor, scale: Tensor, shift: Tensor, eps: float, *, quantized: bool
) -> tuple[Tensor, Activation]:
    """Add the gated ``y`` and modulate; see :func:`twinshot_kernels.gated_residual_layer_norm`."""
    if quantized:
        stream, *rows = gated_residual_layer_norm_fp8(x, y, gain, scale, shift, eps)
        return stream, QuantizedRows(*rows)
    return gated_residual_layer_norm(x, y, gain, scale, shift, eps)


class GeluMLP(nn.Module):
    """Two projections with biases and the tanh form of GELU between them, without a pass of its own."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.up = Projection(channels, hidden, bias=True)
        self.down = Projection(hidden, channels, bias=True)

    def forward(self, x: Activation) -> Tensor:
        """Transform each row of ``[..., channels]``."""
        if self.up.quantized:
            hidden: Activation = QuantizedRows(*gelu_fp8(self.up(x)))
        else:
            hidden = linear_gelu(_plain(x), self.up.weight, self.up.bias)  # type: ignore[arg-type]
        out: Tensor = self.down(hidden)
        return out
