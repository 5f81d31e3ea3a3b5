"""How much device memory a model takes, told before any of it is allocated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from twinshot_engine.config import EngineConfig, Placement
from twinshot_engine.errors import NotEnoughMemoryError
from twinshot_engine.precision import Projection
from twinshot_engine.text.words import WordTable

_GB = 1e9
_ELEMENT = 2


def check_memory(modules: Iterable[nn.Module], workspace: int, placement: Placement) -> None:
    """Compare what a model will need with what its GPU has free; on the CPU nothing is checked.

    Args:
        modules: the parts, on the meta device with their final types.
        workspace: bytes of intermediate results, see :func:`workspace_bytes`.
        placement: where they are to go.

    Raises:
        NotEnoughMemoryError: it would not fit; says what would.
    """
    if placement.device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(placement.device)
    name = torch.cuda.get_device_name(placement.device)
    compare(weight_bytes(modules, placement.device), workspace, free, name, placement)


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


def weight_bytes(modules: Iterable[nn.Module], device: torch.device) -> int:
    """Bytes of the parameters on ``device``, scales included; of a GPU, tables of words are none."""
    total = 0
    for module in modules:
        total += sum(parameter.nbytes for parameter in module.parameters())
        for part in module.modules():
            if isinstance(part, Projection) and part.weight_scale is not None:
                total += part.weight_scale.nbytes
            elif isinstance(part, WordTable) and device.type == "cuda":
                total -= part.weight.nbytes
    return total


def workspace_bytes(denoise: int, decode: int, config: EngineConfig) -> int:
    """Estimate the bytes of intermediate results of the largest advertised work.

    Args:
        denoise: of one image at the largest size, see :func:`stream_bytes`.
        decode: likewise, see :func:`kl_decoder_bytes`.
        config: whose batch sizes and cache count.
    """
    return max(config.batch_sizes) * (denoise + decode) + config.text_cache_bytes


def stream_bytes(tokens: int, width: int, hidden: int) -> int:
    """Estimate a transformer's widest moment: stream, its normalised form, an MLP's packed input and output.

    Args:
        tokens: of image and caption together.
        width: channels of the stream.
        hidden: channels inside the MLP.
    """
    return tokens * (4 * width + 3 * hidden) * _ELEMENT


def kl_decoder_bytes(pixels: int, widths: Sequence[int]) -> int:
    """Estimate a decoder's widest moment: its last resolution change, with its input, normalised, and output.

    Args:
        pixels: of the image.
        widths: channels of each level, that of the image's resolution first.
    """
    return pixels * (3 * widths[min(1, len(widths) - 1)] + 2 * widths[0]) * _ELEMENT


def deep_compression_bytes(pixels: int, widths: Sequence[int]) -> int:
    """Estimate a deep-compression decoder's widest moment: a block's input and output, and a strip within.

    Args:
        pixels: of the image.
        widths: channels of each level, that of the image's resolution first.
    """
    return pixels * 3 * widths[0] * _ELEMENT
