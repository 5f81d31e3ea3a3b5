"""Frozen parameters of serving forms."""

import torch
from torch import Tensor, nn


def constant(tensor: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """Freeze a tensor as a parameter of type ``dtype``; kernels of convolutions become channels last."""
    layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    return nn.Parameter(tensor.detach().to(dtype).contiguous(memory_format=layout), requires_grad=False)
