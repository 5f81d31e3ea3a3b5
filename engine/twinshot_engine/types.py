"""The vocabulary between the engine and its callers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One image to draw.

    ``seed`` alone decides the noise, whatever else is in the batch. ``width`` and ``height`` are pixels.
    ``steps`` is the number of steps along the schedule. ``adapter`` names one that is loaded. ``guidance``
    (classifier-free; 1 is none) takes a second pass a step, without the prompt, and moves away from it.
    """

    prompt: str
    seed: int
    width: int = 256
    height: int = 256
    steps: int = 1
    adapter: str | None = None
    guidance: float = 1.0

    @property
    def passes(self) -> int:
        """How often the transformer runs."""
        return self.steps if self.guidance == 1 else 2 * self.steps


@dataclass(slots=True)
class StageTimes:
    """Seconds spent on a request, stage by stage; stages of a batch are shared by its requests.

    The engine fills ``text``, ``denoise`` and ``decode`` (which includes the copy to the host); ``queue``
    and ``encode`` (the image file) belong to the server.
    """

    queue: float = 0.0
    text: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0
    encode: float = 0.0


@dataclass(frozen=True, slots=True)
class GeneratedBatch:
    """Images ``[B, H, W, 3]`` uint8 in the order of the requests, and what the batch cost."""

    images: NDArray[np.uint8]
    times: StageTimes


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is loaded and what it can do.

    Attributes:
        name: the checkpoint's own name, or its folder's.
        family: the pipeline class its ``model_index.json`` names.
        checkpoint: the reference it was loaded by.
        revision: the Hub commit, or None for a folder.
        device: such as ``cpu`` or ``cuda:0``.
        precision: ``fp32``, ``bf16`` or ``fp8``.
        text_precision: ``fp8``, or the type of the text encoder's projections.
        backend: ``eager`` or ``fused``.
        torch_version: of the running torch.
        parameters: counts of the parts ``text``, ``transformer`` and ``decoder`` as loaded.
        sizes: supported sizes with the default first; examples only if ``size_rule`` allows more.
        size_rule: the supported sizes in words.
        steps: the step counts that are advertised, and no others.
        max_prompt_tokens: longest prompt with its chat template.
        load_seconds: from the start of loading until ready.
        description: one line about the checkpoint; may be empty.
        guided_steps: those of them that take guidance.
        vocabulary: what a narrow checkpoint knows, by kind of word; empty for a general one.
        near: words that it does not know -> the known words to draw in their place.
        examples: prompts to begin with.
    """

    name: str
    family: str
    checkpoint: str
    revision: str | None
    device: str
    precision: str
    torch_version: str
    parameters: Mapping[str, int]
    sizes: Sequence[Size]
    size_rule: str
    steps: Sequence[int]
    max_prompt_tokens: int
    load_seconds: float
    description: str = ""
    guided_steps: Sequence[int] = ()
    vocabulary: Mapping[str, Any] = field(default_factory=dict)
    near: Mapping[str, str] = field(default_factory=dict)
    examples: Sequence[str] = ()
    text_precision: str = "fp32"
    backend: str = "eager"
