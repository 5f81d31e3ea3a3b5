"""What twinshot is compared with: stock modules of diffusers and transformers, run as their pipelines do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from twinshot_engine.errors import CheckpointError
from twinshot_engine.random_weights import RandomCheckpoint
from twinshot_engine.text import PromptTokenizer, Tokens


@dataclass
class StockPipeline(ABC):
    """The stock modules of one random checkpoint; a subclass makes each when it is first asked for."""

    checkpoint: RandomCheckpoint
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def tokenizer(self) -> PromptTokenizer:
        """The tokenizer that twinshot has for this checkpoint."""

    @abstractmethod
    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Shape ``(C, h, w)`` of a picture's latents."""

    @abstractmethod
    def encode(self, tokens: Tokens) -> Any:
        """Embed a prompt as :meth:`denoise` takes it."""

    @abstractmethod
    def denoise(self, latents: Tensor, caption: Any) -> Tensor:
        """Take one step from noise ``[1, C, h, w]`` fp32 to the data."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode ``[1, C, h, w]`` to ``[1, H, W, 3]`` uint8."""

    @abstractmethod
    def repeated(self) -> Sequence[nn.Module]:
        """The blocks that repeat, which users are told to compile one by one, and the decoder."""

    def compile(self) -> None:
        """Compile as users are told to."""
        for module in self.repeated():
            module.compile(dynamic=False)

    def forget(self) -> None:
        """Let go of all modules; each is made again when it is asked for."""
        for name in [name for name, value in vars(self).items() if isinstance(value, nn.Module)]:
            delattr(self, name)

    def fill(
        self,
        module: nn.Module,
        part: str,
        rename: Callable[[str], str] = lambda name: name,
        ignored: tuple[str, ...] = (),
        dtype: torch.dtype | None = None,
    ) -> nn.Module:
        """Give a module on the meta device the checkpoint's weights, and make it ready to run.

        Args:
            module: its buffers must be stored too, not matter, or be set afterwards.
            part: the checkpoint's.
            rename: from stored names to the module's.
            ignored: beginnings of stored names that the module does not know.
            dtype: of the weights, if not the pipeline's.
        """
        stored = self.checkpoint.part(part)
        module.to(dtype or self.dtype).to_empty(device=self.device)
        wanted = {name for name in stored.headers if not name.startswith(ignored)}
        places = dict(module.named_parameters()) | dict(module.named_buffers())
        for name, tensor in stored.read(wanted, self.device):
            places[rename(name)].data.copy_(tensor)
        return module.requires_grad_(requires_grad=False).eval()


def widen_while_running(module: nn.Module) -> None:
    """Let a module of narrow weights compute in fp32: each layer's are widened while it runs, and dropped."""
    for layer in module.modules():
        if next(layer.parameters(recurse=False), None) is not None:
            narrow = {name: parameter.data for name, parameter in layer.named_parameters(recurse=False)}
            layer.register_forward_pre_hook(partial(_set, {}, narrow))
            layer.register_forward_hook(partial(_set, narrow, {}))


def _set(as_they_are: Mapping[str, Tensor], widened: Mapping[str, Tensor], layer: nn.Module, *_: Any) -> None:
    for name, tensor in as_they_are.items():
        layer.get_parameter(name).data = tensor
    for name, tensor in widened.items():
        layer.get_parameter(name).data = tensor.float()


def to_bytes(pixels: Tensor) -> Tensor:
    """Turn pixels ``[1, 3, H, W]`` from -1 to 1 into ``[1, H, W, 3]`` uint8, rounding as diffusers does."""
    unit = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float()
    return (unit * 255).round().to(torch.uint8)


def import_diffusers() -> Any:
    """Import diffusers.

    Raises:
        CheckpointError: it is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise CheckpointError("A comparison needs diffusers: pip install 'twinshot-server[dev]'.") from error
    return diffusers
