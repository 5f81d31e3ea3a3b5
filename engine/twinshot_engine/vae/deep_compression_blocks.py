"""The blocks of the deep-compression decoder that serves; each maps ``[B, H, W, C]`` to the same layout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinshot_engine.vae.deep_compression_config import DeepCompressionConfig
from twinshot_engine.vae.deep_compression_stored import (
    StoredAttention,
    StoredFeedForward,
    StoredResBlock,
    StoredUpsampler,
    StoredViTBlock,
)
from twinshot_engine.vae.folding import folded_kernel
from twinshot_kernels import (
    bias_silu,
    depthwise_glu,
    depthwise_mix,
    linear_attention,
    pixel_norm,
    upsample_shortcut,
)

EPS = 1e-5
STRIP_BYTES = 2**25
"""Most that a residual block holds of what its first convolution makes, for each image of a batch."""


def frozen(tensor: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """Copy a tensor as a parameter of type ``dtype``; kernels of convolutions become channels last."""
    layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    return nn.Parameter(tensor.detach().to(dtype).contiguous(memory_format=layout), requires_grad=False)


def images(x: Tensor) -> Tensor:
    """View ``[B, H, W, C]`` as the channels-last ``[B, C, H, W]`` that convolutions take."""
    return x.permute(0, 3, 1, 2)


def rows(x: Tensor) -> Tensor:
    """View what a convolution returned as ``[B, H, W, C]``."""
    return x.permute(0, 2, 3, 1)


def strips(shape: torch.Size, element: int) -> Iterator[tuple[slice, int, int]]:
    """Divide images ``[B, H, W, C]`` into contiguous strips of :data:`STRIP_BYTES` for each, or of one row.

    Cuts cost time, and the more images there are, the less a strip adds to what they hold anyway.

    Args:
        shape: of the images.
        element: bytes of a value.

    Yields:
        Which images, their first row, and the row behind the last: some rows of one image, or several whole.
    """
    batch, height, *pixel = shape
    lines = max(1, batch * STRIP_BYTES // (math.prod(pixel) * element))
    count = max(1, lines // height)
    for start, first in product(range(0, batch, count), range(0, height, lines)):
        yield slice(start, min(start + count, batch)), first, min(first + lines, height)


class Norm(nn.Module):
    """Root-mean-square norm of pixels, and what is added to it."""

    def __init__(self, stored: nn.Module) -> None:
        super().__init__()
        self.weight = frozen(stored.get_parameter("weight"), torch.float32)
        self.bias = frozen(stored.get_parameter("bias"), torch.float32)

    def forward(self, x: Tensor, residual: Tensor, out: Tensor | None = None) -> Tensor:
        """Normalise ``[B, H, W, C]`` and add ``residual``; see :func:`twinshot_kernels.pixel_norm`."""
        return pixel_norm(x, self.weight, self.bias, EPS, residual=residual, out=out)


class _ResBlock(nn.Module):
    """Two convolutions, strip by strip, so that what lies between them is never there as a whole."""

    def __init__(self, block: StoredResBlock, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv1 = frozen(block.conv1.weight, dtype)
        self.bias1 = frozen(block.conv1.get_parameter("bias"), torch.float32)
        self.conv2 = frozen(block.conv2.weight, dtype)
        self.norm = Norm(block.norm)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return self.norm(self._convolve(x), x)  # type: ignore[no-any-return]
        out = torch.empty_like(x)
        for some, first, last in strips(x.shape, x.element_size()):
            self._write(out[some, first:last], x[some], first, last)
        return out

    def _write(self, out: Tensor, x: Tensor, first: int, last: int) -> None:
        """Compute some rows of images."""
        top = max(first - 2, 0)  # two rows are spoiled by the zeros that each convolution sees beyond a cut
        hidden = self._convolve(x[:, top : last + 2])[:, first - top : last - top]
        self.norm(hidden, x[:, first:last], out)

    def _convolve(self, x: Tensor) -> Tensor:
        hidden = bias_silu(rows(functional.conv2d(images(x), self.conv1, padding=1)), self.bias1)
        return rows(functional.conv2d(images(hidden), self.conv2, padding=1))


class _Attention(nn.Module):
    """Linear attention of the tokens and, beside them, of their mixture with neighbours.

    A head is 3 D neighbouring channels of the packed projection: its query, key and value.
    """

    def __init__(self, layer: StoredAttention, head_dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.head_dim = head_dim
        packed = torch.cat([getattr(layer, f"to_{part}").weight for part in "qkv"])
        self.to_qkv = frozen(packed, dtype)
        self.to_out = frozen(layer.to_out.weight, dtype)
        self.norm = Norm(layer.norm_out)
        self.taps: nn.Parameter | None = None
        self.mix: nn.Parameter | None = None
        for scale in layer.to_qkv_multiscale:
            self.taps = frozen(scale.get_parameter("proj_in.weight").flatten(1).t(), dtype)
            mix = scale.get_parameter("proj_out.weight")
            self.mix = frozen(torch.unflatten(mix.flatten(1), 0, (-1, head_dim)), dtype)

    def forward(self, x: Tensor) -> Tensor:
        packed = functional.linear(x, self.to_qkv)
        if self.taps is not None and self.mix is not None:
            packed = depthwise_mix(packed, self.taps, self.mix)
        heads = torch.unflatten(packed.flatten(1, 2), -1, (-1, 3, self.head_dim))
        mixed = torch.unflatten(linear_attention(*heads.unbind(-2)).flatten(-2), 1, x.shape[1:3])
        return self.norm(functional.linear(mixed, self.to_out), x)  # type: ignore[no-any-return]


class _FeedForward(nn.Module):
    def __init__(self, layer: StoredFeedForward, dtype: torch.dtype) -> None:
        super().__init__()
        self.widen = frozen(layer.conv_inverted.weight.flatten(1), dtype)
        self.widen_bias = frozen(layer.conv_inverted.get_parameter("bias"), dtype)
        self.taps = frozen(layer.conv_depth.weight.flatten(1).t(), dtype)
        self.bias = frozen(layer.conv_depth.get_parameter("bias"), torch.float32)
        self.narrow = frozen(layer.conv_point.weight.flatten(1), dtype)
        self.norm = Norm(layer.norm)

    def forward(self, x: Tensor) -> Tensor:
        wide = functional.linear(x, self.widen, self.widen_bias)
        mixed = functional.linear(depthwise_glu(wide, self.taps, self.bias), self.narrow)
        return self.norm(mixed, x)  # type: ignore[no-any-return]


class _Upsampler(nn.Module):
    def __init__(self, layer: StoredUpsampler, dtype: torch.dtype, *, interpolate: bool) -> None:
        super().__init__()
        self.interpolate = interpolate
        weight = layer.conv.weight.detach()
        self.weight = frozen(folded_kernel(weight) if interpolate else weight, dtype)
        self.bias = frozen(layer.conv.get_parameter("bias"), torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        if self.interpolate:
            u = functional.conv_transpose2d(images(x), self.weight, stride=2, padding=1)
        else:
            u = functional.conv2d(images(x), self.weight, padding=1)
        return upsample_shortcut(rows(u), self.bias, x, shuffled=self.interpolate)


def build_block(block: nn.Module, config: DeepCompressionConfig, dtype: torch.dtype) -> nn.Module:
    """Build the serving form of one stored layer.

    Raises:
        TypeError: the layer is none of a decoder's.
    """
    if isinstance(block, StoredResBlock):
        return _ResBlock(block, dtype)
    if isinstance(block, StoredUpsampler):
        return _Upsampler(block, dtype, interpolate=config.interpolate)
    if isinstance(block, StoredViTBlock):
        attention = _Attention(block.attn, config.attention_head_dim, dtype)
        return nn.Sequential(attention, _FeedForward(block.conv_out, dtype))
    raise TypeError(f"found a layer of type {type(block).__name__}, which is no decoder's")
