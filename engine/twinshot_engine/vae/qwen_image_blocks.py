"""The layers of Qwen-Image's decoder at one frame, channels last, biases and norms in the passes beside them.

A layer takes an image ``x``, whose bias may be *pending*, and ``h``, what the layer's norm made of it; it
returns both for the next one, whose norm it is given.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinshot_engine.vae.constants import constant
from twinshot_engine.vae.folding import folded_kernel
from twinshot_engine.vae.token_attention import Linear, TokenAttention
from twinshot_kernels import residual_rms_norm_silu, residual_sum, rms_norm_silu

Normed = tuple[Tensor, Tensor]
"""An image ``[B, C, H, W]`` and what the next layer's norm makes of it."""

_SMALLEST_NORM = 1e-12
"""Below which diffusers divides a pixel by this instead of its norm."""


class Stored:
    """Stored tensors below a name."""

    def __init__(self, weights: Mapping[str, Tensor], stem: str = "") -> None:
        self._weights, self._stem = weights, stem

    def at(self, name: str) -> Stored:
        """Those below ``name``."""
        return Stored(self._weights, f"{self._stem}{name}.")

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return self._stem + name in self._weights

    def gamma(self, name: str) -> Tensor:
        """A norm's scale ``[C]``."""
        return self._get(f"{name}.gamma").flatten()

    def kernel(self, name: str = "") -> Tensor:
        """A convolution's weight ``[out, in, y, x]``: along time, its last tap."""
        weight = self._get(_join(name, "weight"))
        return weight[:, :, -1] if weight.dim() == 5 else weight

    def bias(self, name: str = "") -> Tensor:
        """A convolution's bias."""
        return self._get(_join(name, "bias"))

    def _get(self, name: str) -> Tensor:
        return self._weights[self._stem + name].detach()


class PixelNorm(nn.Module):
    """RMS norm over channels and, unless told otherwise, SiLU."""

    def __init__(self, gamma: Tensor, *, silu: bool = True) -> None:
        super().__init__()
        self.weight = constant(gamma, torch.float32)
        self.eps, self.silu = _SMALLEST_NORM**2 / len(gamma), silu

    def forward(self, x: Tensor, pending: Tensor | None = None) -> Tensor:
        """Normalise ``x + pending``."""
        return rms_norm_silu(x, self.weight, self.eps, channel_bias=pending, silu=self.silu)

    def of_sum(self, x: Tensor, y: Tensor, bias: Tensor) -> Normed:
        """Normalise ``x + y + bias``, which is returned too."""
        return residual_rms_norm_silu(x, y, self.weight, self.eps, channel_bias=bias, silu=self.silu)


class NoNorm(nn.Module):
    """Stands before a layer that reads its input as it is, with its bias."""

    def forward(self, x: Tensor, pending: Tensor | None = None) -> Tensor:
        """Add the bias."""
        return x if pending is None else x + pending.to(x.dtype)[:, None, None]

    def of_sum(self, x: Tensor, y: Tensor, bias: Tensor) -> Normed:
        """Add, for both."""
        total = residual_sum(x, y, channel_bias=bias)
        return total, total


Norm = PixelNorm | NoNorm
"""What makes a layer's ``h``."""


class Resnet(nn.Module):
    """Two normalised 3x3 convolutions around a skip connection; :attr:`pending` is the output's bias."""

    def __init__(self, stored: Stored, pending: Tensor | None, ahead: Norm, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv1 = constant(stored.kernel("conv1"), dtype)
        self.conv1_bias = constant(stored.bias("conv1"), torch.float32)
        self.norm = PixelNorm(stored.gamma("norm2"))
        self.conv2 = constant(stored.kernel("conv2"), dtype)
        self.ahead = ahead
        self.shortcut: nn.Parameter | None = None
        bias = stored.bias("conv2").float()
        if stored.has("conv_shortcut.weight"):
            matrix = stored.kernel("conv_shortcut").flatten(1)
            self.shortcut = constant(matrix.T, dtype)
            bias = bias + stored.bias("conv_shortcut")
            pending = pending if pending is None else matrix.float() @ pending.float()
        self.bias = constant(bias if pending is None else bias + pending, torch.float32)
        self.pending = None if self.shortcut is None else self.bias

    def forward(self, x: Tensor, h: Tensor) -> Normed:
        """Map ``[B, in, H, W]`` to ``[B, out, H, W]``."""
        hidden = functional.conv2d(h, self.conv1, padding=1)
        hidden = functional.conv2d(self.norm(hidden, self.conv1_bias), self.conv2, padding=1)
        if self.shortcut is not None:
            # Accumulating into the convolution's output makes the residual add part of the product.
            rows = hidden.permute(0, 2, 3, 1).view(-1, hidden.shape[1])
            rows.addmm_(x.permute(0, 2, 3, 1).flatten(0, 2), self.shortcut)
            return hidden, self.ahead(hidden, self.bias)
        return self.ahead.of_sum(x, hidden, self.bias)


class Attention(nn.Module):
    """Single-head attention over all pixels, added to an image that has no bias pending."""

    pending = None

    def __init__(self, stored: Stored, ahead: Norm, dtype: torch.dtype) -> None:
        super().__init__()
        weights, biases = stored.kernel("to_qkv").flatten(1).chunk(3), stored.bias("to_qkv").chunk(3)
        out = Linear(stored.kernel("proj").flatten(1), stored.bias("proj"))
        self.mix = TokenAttention([*map(Linear, weights, biases), out], dtype)
        self.ahead = ahead

    def forward(self, x: Tensor, h: Tensor) -> Normed:
        """Mix the positions of ``[B, C, H, W]``."""
        return self.ahead.of_sum(x, self.mix(h), self.mix.bias)


class Upsampler(nn.Module):
    """Doubling and a 3x3 convolution to half the channels, as one transposed convolution without its bias."""

    def __init__(self, stored: Stored, ahead: Norm, dtype: torch.dtype) -> None:
        super().__init__()
        convolution = stored.at("resample")
        self.weight = constant(folded_kernel(convolution.kernel("1")), dtype)
        self.pending = constant(convolution.bias("1"), torch.float32)
        self.ahead = ahead

    def forward(self, _x: Tensor, h: Tensor) -> Normed:
        """Map ``[B, in, H, W]`` to ``[B, in / 2, 2H, 2W]``."""
        doubled = functional.conv_transpose2d(h, self.weight, stride=2, padding=1)
        return doubled, self.ahead(doubled, self.pending)


def _join(name: str, kind: str) -> str:
    return f"{name}.{kind}" if name else kind
