"""From a pair of times to one vector, as the released TwinFlow Z-Image does it.

TwinFlow counts time from data (0) to noise (1) and marks the fake trajectory by a minus sign; Z-Image
counts from noise (0) to data (1). Source: inclusionAI/TwinFlow, ``diffusers_patch/z_image``.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

FREQUENCIES = 256
HIDDEN_CHANNELS = 1024
LONGEST_PERIOD = 10_000.0


def model_time(t: Tensor) -> Tensor:
    """Convert TwinFlow times in [-1, 1] to Z-Image's: ``sign(t) (1 - |t|)`` in fp64.

    The sign of 0 is 0, so a target of 0 maps to 0 and not to 1.
    """
    t = t.double()
    return t.sign() * (1 - t.abs())


def sinusoid(time: Tensor) -> Tensor:
    """Return the cosines then sines of ``time`` ``[B]`` at 128 geometric frequencies: ``[B, 256]`` fp32."""
    half = FREQUENCIES // 2
    steps = torch.arange(half, dtype=torch.float32, device=time.device)
    angles = time.float()[:, None] * torch.exp(-math.log(LONGEST_PERIOD) * steps / half)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class TimeEmbedder(nn.Module):
    """Sinusoid of a time, then two linear layers; always computed in fp32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(FREQUENCIES, HIDDEN_CHANNELS), nn.SiLU(), nn.Linear(HIDDEN_CHANNELS, channels)
        )

    def forward(self, time: Tensor) -> Tensor:
        """Embed scaled times ``[B]`` (any sign) as ``[B, channels]`` fp32."""
        with torch.autocast(time.device.type, enabled=False):
            hidden = _linear_fp32(sinusoid(time), self.mlp[0])
            return _linear_fp32(functional.silu(hidden), self.mlp[2])


def _linear_fp32(x: Tensor, layer: nn.Module) -> Tensor:
    if not isinstance(layer, nn.Linear):  # one with an adapter: it alone knows what it adds
        adapted: Tensor = layer(x)
        return adapted
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    return functional.linear(x, weight.float(), bias.float())
