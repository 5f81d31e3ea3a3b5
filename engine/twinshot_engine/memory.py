"""How much device memory a model takes, told before any of it is allocated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from twinshot_engine.config import Placement
from twinshot_engine.errors import NotEnoughMemoryError
from twinshot_engine.precision import Projection
from twinshot_engine.transformer.config import SingleStreamConfig
from twinshot_engine.types import Size
from twinshot_engine.vae.kl_config import KLConfig

_GB = 1e9


@dataclass(frozen=True, slots=True)
class Workload:
    """What decides how large intermediate results become."""

    transformer: SingleStreamConfig
    vae: KLConfig
    sizes: Sequence[Size]
    batch: int
    prompt_tokens: int
    cache_bytes: int


def check_memory(modules: Iterable[nn.Module], workload: Workload, placement: Placement) -> None:
    """Compare what a model will need with what its GPU has free; on the CPU nothing is checked.

    Args:
        modules: the parts, on the meta device with their final types.
        workload: the largest work that is advertised.
        placement: where they are to go.

    Raises:
        NotEnoughMemoryError: it would not fit; says what would.
    """
    if placement.device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(placement.device)
    name = torch.cuda.get_device_name(placement.device)
    compare(weight_bytes(modules), workspace_bytes(workload), free, name, placement)


def compare(weights: int, workspace: int, free: int, gpu: str, placement: Placement) -> None:
    """Raise NotEnoughMemoryError unless ``weights + workspace`` bytes fit into ``free``."""
    if weights + workspace <= free:
        return
    remedies = ["fewer or smaller sizes", "smaller batch sizes"]
    if not placement.text_fp8:
        remedies.insert(0, "the text encoder in fp8")
    if placement.precision != "fp8":
        remedies.insert(0, "precision 'fp8'")
    raise NotEnoughMemoryError(
        f"{gpu} has {free / _GB:.1f} GB free, but this checkpoint in {placement.precision} needs about "
        f"{(weights + workspace) / _GB:.1f} GB ({weights / _GB:.1f} of weights, {workspace / _GB:.1f} of "
        f"workspace): {', '.join(remedies)} need less."
    )


def weight_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of the parameters, scales included."""
    total = 0
    for module in modules:
        total += sum(parameter.nbytes for parameter in module.parameters())
        scales = (part.weight_scale for part in module.modules() if isinstance(part, Projection))
        total += sum(scale.nbytes for scale in scales if scale is not None)
    return total


def workspace_bytes(workload: Workload) -> int:
    """Estimate the bytes of intermediate results of the largest size: the larger of both stages, and caches.

    The denoiser's widest moment holds the stream, its normalised form, SwiGLU's packed input and its output;
    the decoder's is its last resolution change, where input, normalised input and output exist together.
    """
    pixels = max(width * height for width, height in workload.sizes)
    config, element = workload.transformer, 2
    patch_pixels = (workload.vae.downscale * config.patch_size) ** 2
    tokens = pixels // patch_pixels + workload.prompt_tokens
    hidden = int(config.dim / 3 * 8)
    denoise = tokens * (4 * config.dim + 3 * hidden) * element
    widths = workload.vae.block_out_channels
    decode = pixels * (3 * widths[min(1, len(widths) - 1)] + 2 * widths[0]) * element
    return workload.batch * (denoise + decode) + workload.cache_bytes
