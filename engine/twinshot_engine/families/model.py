"""What every family is turned into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from twinshot_engine.card import Card
from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.config import EngineConfig, Placement
from twinshot_engine.families.repacked import Headers, Repack
from twinshot_engine.text import Caption, PromptTokenizer
from twinshot_engine.types import Size
from twinshot_engine.vae import PixelDecoder
from twinshot_engine.weights import Slot, StoredPart

Progress = Callable[[str, float], None]
"""Receives what is being loaded and how much is done, 0 to 1."""


class Pass(NamedTuple):
    """The constants of one pass of a schedule, on the device.

    Attributes:
        modulation: what the family made of the pass's times, such as a row of its table.
        weights: ``[3]`` fp32, see :attr:`twinshot_engine.schedule.Schedule.weights`.
        renoises: whether fresh noise has any weight.
        takes_guidance: whether it predicts the velocity at its own time.
    """

    modulation: Tensor
    weights: Tensor
    renoises: bool
    takes_guidance: bool = False


class Like(NamedTuple):
    """Shape and type of a tensor for one image, its first dimension of 1 standing for the batch."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Folded(NamedTuple):
    """What a family made of a transformer's weights that never stay on the device, such as time's.

    Attributes:
        passes: the constants of every advertised step count.
        buffers: of the transformer, by name, where it holds more of them.
    """

    passes: Mapping[int, tuple[Pass, ...]]
    buffers: Mapping[str, Tensor] = MappingProxyType({})


class Adaptable(NamedTuple):
    """What adapters change of a loaded model.

    Attributes:
        module: the transformer.
        stored: its weights as they are stored.
        slots: from stored names to the module's parameters; of what has none, the rest is folded.
        folded: as it was loaded.
        fold: folds stored weights anew.
        translate: as :attr:`~twinshot_engine.families.repacked.Repack.translate`.
    """

    module: nn.Module
    stored: StoredPart
    slots: Mapping[str, Slot]
    folded: Folded
    fold: Callable[[StoredPart], Folded]
    translate: Callable[[Headers], Headers]


@dataclass(frozen=True, kw_only=True)
class Model(ABC):
    """A text-to-image model, loaded and placed, and the three stages it makes.

    The stages are pure functions of tensors on the model's device, without host synchronisation, so that
    a backend may capture them.

    Attributes:
        tokenizer: from prompts to padded token ids.
        placement: where the parts are, and in which number format.
        card: what people are told, and the sizes.
        passes: the constants of every advertised step count.
        latent_channels: channels of the latents that noise is drawn for.
        downscale: pixels along a side that become one latent.
        decoder: from latents to bytes.
        negative_prompt: what guidance leads away from.
        adaptable: what adapters change; None if it takes none.
    """

    tokenizer: PromptTokenizer
    placement: Placement
    card: Card
    passes: Mapping[int, tuple[Pass, ...]]
    latent_channels: int
    downscale: int
    decoder: PixelDecoder
    negative_prompt: str = ""
    adaptable: Adaptable | None = None

    @property
    @abstractmethod
    def parts(self) -> Mapping[str, nn.Module]:
        """What is loaded, by the names that ``EngineInfo.parameters`` gives."""

    def negative_ids(self) -> list[int]:
        """Token ids of what guidance leads away from, as the family's pipeline encodes it."""
        return self.tokenizer.encode(self.negative_prompt)

    @abstractmethod
    def encode(self, ids: Tensor, length: Tensor) -> Caption:
        """Embed token ids ``[B, L]`` of true ``length`` ``[B]`` as all that the transformer reads of them."""

    @abstractmethod
    def caption_like(self, tokens: int) -> tuple[Like, ...]:
        """Tell the tensors that :meth:`encode` makes of ids of this padded length."""

    @abstractmethod
    def denoise(
        self, latents: Tensor, fresh: Tensor, caption: Caption, modulation: Tensor, weights: Tensor
    ) -> Tensor:
        """Move latents ``[B, C, h, w]`` fp32 along one pass; the last two arguments are a :class:`Pass`'s."""

    def guide(self, latents: Tensor, moved: Tensor, without: Tensor, guidance: float) -> Tensor:
        """Combine a step that was taken twice, outside of what a backend captures.

        A step is linear in the velocity, so the steps are combined in the velocities' stead.

        Args:
            latents: before the step, ``[B, C, h, w]`` fp32.
            moved: after it, taken with the prompt.
            without: after it, taken with :meth:`negative_ids`.
            guidance: above 1 leads away from those.
        """
        del latents  # a family that rescales velocities needs them
        return torch.lerp(without, moved, guidance)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents ``[B, C, h, w]`` fp32 to ``[B, H, W, 3]`` uint8."""
        return self.decoder.decode_to_bytes(latents)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Shape ``(C, h, w)`` of the latents of a picture of ``width`` by ``height`` pixels."""
        return self.latent_channels, height // self.downscale, width // self.downscale

    def count_parameters(self) -> Mapping[str, int]:
        """Count what is loaded, part by part."""
        return {name: sum(p.numel() for p in part.parameters()) for name, part in self.parts.items()}


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


OpenForm = Callable[[dict[str, Any]], nn.Module]
"""Builds a part as checkpoints store it, parameter by parameter, from its config."""


class Family(NamedTuple):
    """One family of checkpoints.

    Attributes:
        load: builds its model.
        plan: tells what loading would take.
        open_forms: of each part by its folder, which names and shapes random weights.
        repack: how files with its transformer alone are read; None if they are not.
    """

    load: FamilyLoader
    plan: FamilyPlanner
    open_forms: Mapping[str, OpenForm]
    repack: Repack | None = None
