"""Prompts in, pixels out: load, warm, then generate batch after batch."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinshot_engine.checkpoint import Checkpoint, find_checkpoint
from twinshot_engine.config import EngineConfig
from twinshot_engine.errors import InvalidRequestError
from twinshot_engine.families import Model, find_family
from twinshot_engine.families.model import Progress
from twinshot_engine.noise import Noise
from twinshot_engine.schedule import (
    SUPPORTED_STEPS,
    Schedule,
    advance,
    estimate_data,
    estimate_noise,
    schedule_for,
)
from twinshot_engine.stopwatch import Stopwatch
from twinshot_engine.text import TextEmbeddings
from twinshot_engine.transformer.config import TOKEN_MULTIPLE
from twinshot_engine.types import EngineInfo, GeneratedBatch, GenerateRequest, StageTimes
from twinshot_kernels import quantize_pixels

__all__ = ["Engine", "EngineInfo"]

LARGEST_SEED = 2**63 - 1

_Rows = list[int] | slice


class Engine:
    """A loaded model. Use :meth:`load`; one thread at a time may generate, any may validate."""

    def __init__(self, model: Model, info: EngineInfo, max_batch: int) -> None:
        self.info = info
        self.max_batch = max_batch
        self._model = model

    @classmethod
    def load(cls, config: EngineConfig, progress: Progress | None = None) -> "Engine":
        """Find and load a checkpoint.

        Args:
            config: what to load and where to.
            progress: called before each stage with its name and the fraction done; what it raises
                ends the loading.

        Raises:
            CheckpointError: the checkpoint is missing, damaged or not supported.
            ValueError: the device does not exist.
        """
        report = progress or (lambda _stage, _fraction: None)
        started = time.perf_counter()
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        placement = config.placement()
        report("checkpoint", 0.0)
        checkpoint = find_checkpoint(config.checkpoint)
        model = find_family(checkpoint)(checkpoint, placement, report)
        report("ready", 1.0)
        return cls(model, _describe(checkpoint, model, time.perf_counter() - started), config.max_batch)

    def warm(self) -> None:
        """Draw one image of the default size, so that the first request is as fast as the next."""
        width, height = self.info.sizes[0]
        self.generate([GenerateRequest("warm up", seed=0, width=width, height=height)])

    def validate(self, request: GenerateRequest) -> None:
        """Check everything that a request's author decides.

        Raises:
            InvalidRequestError: in one sentence, what is wrong and what would be accepted.
        """
        if not request.prompt.strip():
            raise InvalidRequestError("The prompt is empty.")
        if not _is_text(request.prompt):
            raise InvalidRequestError("The prompt holds a lone surrogate, which is not a character.")
        if (request.width, request.height) not in self._model.card.sizes:
            raise InvalidRequestError(
                f"The size {request.width}x{request.height} is not supported; "
                f"supported: {self.info.size_rule}."
            )
        if request.steps not in self.info.steps:
            raise InvalidRequestError(
                f"{request.steps} steps are not supported; "
                f"supported: {self.info.steps[0]} to {self.info.steps[-1]}."
            )
        if not 0 <= request.seed <= LARGEST_SEED:
            raise InvalidRequestError(f"The seed {request.seed} is outside of 0 to {LARGEST_SEED}.")
        self._model.text.tokenize(request.prompt)

    @torch.inference_mode()
    def generate(self, requests: Sequence[GenerateRequest]) -> GeneratedBatch:
        """Draw a batch of validated requests of one size and step count.

        Raises:
            ValueError: the batch is empty, too large or of mixed sizes or steps.
            InvalidRequestError: a prompt has too many tokens.
        """
        self._check_batch(requests)
        watch = Stopwatch(self._model.placement.device)
        embeddings = self.encode_text(requests)
        watch.lap("text")
        noise = self.draw_noise(requests)
        latents = self.denoise(noise, embeddings, schedule_for(requests[0].steps))
        watch.lap("denoise")
        pixels = self.decode(latents)
        images = self.quantise(pixels)
        watch.lap("decode")
        return GeneratedBatch(images, StageTimes(**watch.stop()))

    @torch.inference_mode()
    def latents(self, requests: Sequence[GenerateRequest]) -> Tensor:
        """Return what :meth:`generate` would decode: ``[B, C, h, w]`` fp32 in the transformer's scale."""
        self._check_batch(requests)
        return self.denoise(
            self.draw_noise(requests), self.encode_text(requests), schedule_for(requests[0].steps)
        )

    def encode_text(self, requests: Sequence[GenerateRequest]) -> TextEmbeddings:
        """Embed the prompts; see :meth:`TextEncoder.encode`."""
        return self._model.text.encode([request.prompt for request in requests])

    def draw_noise(self, requests: Sequence[GenerateRequest]) -> Noise:
        """Seed a generator for every request."""
        shape = self._model.latent_shape(requests[0].width, requests[0].height)
        return Noise([request.seed for request in requests], shape, self._model.placement.device)

    def denoise(self, noise: Noise, text: TextEmbeddings, schedule: Schedule) -> Tensor:
        """Run the transformer along a schedule and return its last estimate of the data."""
        groups = _group_by_caption(text.lengths)
        latents = data = noise.draw()
        for t, target_t, t_next in zip(schedule.t, schedule.target_t, schedule.t_next, strict=True):
            velocity = self._predict(latents, t, target_t, text, groups)
            data = estimate_data(latents, velocity, t)
            if t_next > 0:
                fresh = noise.draw() if schedule.noise_ratio > 0 else None
                remaining = estimate_noise(latents, velocity, t)
                latents = advance(data, remaining, fresh, t_next, schedule.noise_ratio)
        return data

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents ``[B, C, h, w]`` to pixels ``[B, 3, H, W]`` in about [-1, 1]."""
        pixels: Tensor = self._model.decoder(latents.to(self._model.placement.dtype))
        return pixels

    def quantise(self, pixels: Tensor) -> NDArray[np.uint8]:
        """Turn pixels into bytes ``[B, H, W, 3]`` on the device and copy them to the host."""
        return quantize_pixels(pixels).cpu().numpy()

    def _predict(
        self, latents: Tensor, t: float, target_t: float, text: TextEmbeddings, groups: dict[int, _Rows]
    ) -> Tensor:
        """Predict the velocity, one pass for each padded caption length, as the positions depend on it."""
        model, dtype, device = self._model.transformer, self._model.placement.dtype, latents.device
        times = torch.tensor([[t], [target_t]], dtype=torch.float64, device=device)
        time_embedding = model.embed_time(times[0], times[1])
        velocity = torch.empty_like(latents)
        for tokens, rows in groups.items():
            embeddings, lengths = text.embeddings[rows, :tokens], text.lengths[rows]
            prediction = model(latents[rows].to(dtype), time_embedding, embeddings, lengths)
            velocity[rows] = -prediction.to(velocity.dtype)
        return velocity

    def _check_batch(self, requests: Sequence[GenerateRequest]) -> None:
        if not 1 <= len(requests) <= self.max_batch:
            raise ValueError(f"a batch of {len(requests)} requests is not between 1 and {self.max_batch}")
        kinds = {(request.width, request.height, request.steps) for request in requests}
        if len(kinds) > 1:
            raise ValueError(f"a batch shares one width, height and step count, but has {sorted(kinds)}")


def _group_by_caption(lengths: Tensor) -> dict[int, _Rows]:
    """Map each padded caption length to the rows that have it."""
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(lengths.tolist()):
        groups.setdefault(length + -length % TOKEN_MULTIPLE, []).append(row)
    # A slice needs no copy, and one length for all is the usual case.
    return dict.fromkeys(groups, slice(None)) if len(groups) == 1 else dict(groups)


def _is_text(prompt: str) -> bool:
    try:
        prompt.encode()
    except UnicodeEncodeError:
        return False
    return True


def _describe(checkpoint: Checkpoint, model: Model, seconds: float) -> EngineInfo:
    return EngineInfo(
        name=model.card.name,
        family=checkpoint.family,
        checkpoint=checkpoint.reference,
        revision=checkpoint.revision,
        device=str(model.placement.device),
        precision=model.placement.precision,
        torch_version=torch.__version__,
        parameters=model.count_parameters(),
        sizes=model.card.sizes.listed,
        size_rule=str(model.card.sizes),
        steps=SUPPORTED_STEPS,
        max_prompt_tokens=model.text.max_tokens,
        load_seconds=seconds,
        description=model.card.description,
        vocabulary=model.card.vocabulary,
    )
