"""What every family is turned into."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from twinshot_engine.card import Card
from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.config import EngineConfig, Placement
from twinshot_engine.schedule import advance
from twinshot_engine.text import PromptTokenizer, Qwen3Encoder
from twinshot_engine.transformer import FoldedTransformer
from twinshot_engine.types import Size
from twinshot_engine.vae import PixelDecoder

Progress = Callable[[str, float], None]
"""Receives what is being loaded and how much is done, 0 to 1."""


class Pass(NamedTuple):
    """The constants of one pass of a schedule, on the device.

    Attributes:
        modulation: ``[V, dim]`` fp32, a row of the transformer's table.
        weights: ``[3]`` fp32, see :attr:`twinshot_engine.schedule.Schedule.weights`.
        renoises: whether fresh noise has any weight.
    """

    modulation: Tensor
    weights: Tensor
    renoises: bool


@dataclass(frozen=True, slots=True)
class Model:
    """The parts of a text-to-image model, loaded and placed, and the three stages they make.

    The stages are pure functions of tensors on the model's device, without host synchronisation, so that
    a backend may capture them.
    """

    tokenizer: PromptTokenizer
    text: Qwen3Encoder
    transformer: FoldedTransformer
    decoder: PixelDecoder
    placement: Placement
    card: Card
    passes: Mapping[int, tuple[Pass, ...]]

    def encode(self, ids: Tensor, length: Tensor) -> Tensor:
        """Embed token ids ``[1, L]`` of true ``length`` ``[1]`` as caption tokens ``[1, L, dim]``."""
        return self.transformer.refine_caption(self.text(ids), length)

    def denoise(
        self, latents: Tensor, fresh: Tensor, caption: Tensor, modulation: Tensor, weights: Tensor
    ) -> Tensor:
        """Move latents ``[B, C, h, w]`` fp32 along one pass; the other arguments are a :class:`Pass`'s."""
        named = self.transformer.modulation(modulation)
        prediction = self.transformer.predict(latents.to(self.placement.dtype), caption, named)
        # Z-Image predicts from noise to data; velocities point from data to noise.
        return advance(latents, -prediction.float(), fresh, weights)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents ``[B, C, h, w]`` fp32 to ``[B, H, W, 3]`` uint8."""
        return self.decoder.decode_to_bytes(latents)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Shape ``(C, h, w)`` of the latents of a picture of ``width`` by ``height`` pixels."""
        downscale = self.decoder.config.downscale
        return self.transformer.config.in_channels, height // downscale, width // downscale

    def count_parameters(self) -> Mapping[str, int]:
        """Count what is loaded, part by part."""
        parts: dict[str, nn.Module] = {
            "text": self.text,
            "transformer": self.transformer,
            "decoder": self.decoder,
        }
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


class Plan(NamedTuple):
    """What loading a checkpoint would take, told from its configs and its files' headers.

    Attributes:
        weight_bytes: of each part as it would be loaded, by name.
        workspace_bytes: estimate for intermediate results at the largest size.
        sizes: supported sizes, default first; examples only if ``size_rule`` allows more.
        size_rule: the supported sizes in words.
        max_prompt_tokens: longest prompt with its chat template.
        few_steps: whether it was distilled for few steps, as far as its weights tell.
    """

    weight_bytes: Mapping[str, int]
    workspace_bytes: int
    sizes: tuple[Size, ...]
    size_rule: str
    max_prompt_tokens: int
    few_steps: bool


class FamilyLoader(Protocol):
    """Builds the parts of one family."""

    def __call__(
        self, checkpoint: Checkpoint, config: EngineConfig, placement: Placement, progress: Progress
    ) -> Model:
        """Load a checkpoint.

        Raises:
            CheckpointError: it is damaged, its parts do not fit together, or it does not fit the device.
        """


class FamilyPlanner(Protocol):
    """Tells what loading a checkpoint of one family would take."""

    def __call__(self, checkpoint: Checkpoint, config: EngineConfig, placement: Placement) -> Plan:
        """Compare configs and headers; no weight is read.

        Raises:
            CheckpointError: it is damaged, or its parts do not fit together.
            ValueError: its weights cannot have the precision of ``placement``.
        """
