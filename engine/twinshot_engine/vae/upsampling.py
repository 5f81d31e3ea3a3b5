"""Three ways to double the size and convolve on a GPU, without the bias; all give the same pixels.

``transposed``: one transposed convolution, 4/9 of the multiplications, no pass beside it. ``phases``: the
same sums as one 2x2 convolution with four times the channels, the shape that GEMM-like kernels like best,
and a copy that deals its output out to the pixels. ``nearest``: as it is written in the model.
``benchmarks/decoder.py`` times them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinshot_engine.vae.folding import folded_kernel, phase_kernel


def constant(tensor: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """Freeze a tensor as a parameter of type ``dtype``; kernels of convolutions become channels last."""
    layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    return nn.Parameter(tensor.detach().to(dtype).contiguous(memory_format=layout), requires_grad=False)


class FusedUpsampler(nn.Module, ABC):
    """Map ``[B, in, H, W]`` to ``[B, out, 2H, 2W]`` less the bias, channels last.

    Args:
        weight: ``[out, in, 3, 3]`` of the convolution that follows the doubling; folded in fp32 or wider.
        dtype: type of the folded weight.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = constant(self.fold(weight), dtype)

    @abstractmethod
    def fold(self, weight: Tensor) -> Tensor:
        """Bring the weight into the form that this way needs."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Double the size and convolve."""


class TransposedUpsampler(FusedUpsampler):
    """One transposed convolution."""

    def fold(self, weight: Tensor) -> Tensor:
        """Add up taps to ``[in, out, 4, 4]``."""
        return folded_kernel(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Double the size and convolve."""
        return functional.conv_transpose2d(x, self.weight, stride=2, padding=1)


class PhaseUpsampler(FusedUpsampler):
    """One convolution to all four phases, and a copy."""

    def fold(self, weight: Tensor) -> Tensor:
        """Add up taps to ``[4 * out, in, 2, 2]``."""
        return phase_kernel(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Double the size and convolve."""
        batch, _, height, width = x.shape
        phases = functional.conv2d(x, self.weight, padding=1).permute(0, 2, 3, 1).contiguous()
        # Copied 16 bytes at a time where they divide a pixel; torch's strided copy takes one element.
        wide = self.weight.shape[0] // 4 * x.element_size() % 16 == 0
        units = phases.view(torch.complex128) if wide else phases
        # Phase (p, q) of pixel (i, j) lies at position (i + p, j + q): strided alike in i and p, in j and q.
        image, row, column, _ = units.stride()
        depth = units.shape[-1] // 4
        pixels = units.as_strided(
            (batch, height, 2, width, 2, depth),
            (image, row, row + 2 * depth, column, column + depth, 1),
        )
        dealt = pixels.reshape(batch, 2 * height, 2 * width, depth).view(x.dtype)
        return dealt.permute(0, 3, 1, 2)


class NearestUpsampler(FusedUpsampler):
    """Doubling, then the convolution."""

    def fold(self, weight: Tensor) -> Tensor:
        """Keep ``[out, in, 3, 3]``."""
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """Double the size and convolve."""
        return functional.conv2d(functional.interpolate(x, scale_factor=2.0), self.weight, padding=1)


UPSAMPLERS: Mapping[str, type[FusedUpsampler]] = {
    "transposed": TransposedUpsampler,
    "phases": PhaseUpsampler,
    "nearest": NearestUpsampler,
}
"""The ways by name."""
