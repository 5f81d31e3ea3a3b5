"""Prompts in, pixels out: load, warm, then generate batch after batch."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinshot_engine.backends import BACKENDS, Stages
from twinshot_engine.backends.stages import Advertised
from twinshot_engine.config import EngineConfig
from twinshot_engine.errors import CheckpointError, InvalidRequestError
from twinshot_engine.families import Model, find_family
from twinshot_engine.families.model import Pass, Progress
from twinshot_engine.loading import describe, nothing_left_behind, set_number_formats
from twinshot_engine.lora import Adapters, AdapterSource
from twinshot_engine.noise import Noise
from twinshot_engine.opening import find_checkpoint
from twinshot_engine.stopwatch import Stopwatch
from twinshot_engine.tensorrt.serving import choose_engines
from twinshot_engine.text import CacheStatistics, Caption, CaptionCache
from twinshot_engine.types import EngineInfo, GeneratedBatch, GenerateRequest, StageTimes

__all__ = ["Engine", "EngineInfo"]

LARGEST_SEED = 2**63 - 1

_Rows = list[int] | slice


class Engine:
    """A loaded model. Use :meth:`load`; one thread at a time may generate, any may validate."""

    def __init__(self, model: Model, info: EngineInfo, config: EngineConfig) -> None:
        self.info = info
        self.max_batch = config.max_batch
        self._model = model
        self._config = config
        self._stages = BACKENDS[model.placement.backend](model)
        self._cache = CaptionCache(config.text_cache_bytes)
        self._adapters = Adapters(model)

    @classmethod
    def load(cls, config: EngineConfig, progress: Progress | None = None) -> "Engine":
        """Find and load a checkpoint.

        Args:
            config: what to load and where to.
            progress: called before each stage with its name and the fraction done; what it raises
                ends the loading.

        Raises:
            CheckpointError: the checkpoint is missing, damaged, not supported or too large for the device;
                as EngineFilesError, engines of TensorRT are not for it.
            ValueError: the device does not exist or cannot do what is asked for.
        """
        report = progress or (lambda _stage, _fraction: None)
        started = time.perf_counter()
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        report("checkpoint", 0.0)
        found = find_checkpoint(config.checkpoint, config.base, config.merged_adapters)
        checkpoint, config, placement = choose_engines(found, config)
        set_number_formats(placement)
        with nothing_left_behind():
            model = find_family(checkpoint).load(checkpoint, config, placement, report)
            engine = cls(model, describe(checkpoint, model, config, time.perf_counter() - started), config)
            for name, source in config.named_adapters.items():
                report(f"adapter {name}", 1.0)
                engine._adapters.load(name, source)
        report("ready", 1.0)
        return engine

    @property
    def stages(self) -> Stages:
        """What runs the model, for those who measure its parts one by one."""
        return self._stages

    @property
    def model(self) -> Model:
        """What was loaded."""
        return self._model

    @property
    def cache_statistics(self) -> CacheStatistics:
        """Hits and misses of the captions kept by prompt, and what they take."""
        return replace(self._cache.statistics)

    @property
    def adapters(self) -> Sequence[str]:
        """The names of the adapters that requests may choose."""
        return self._adapters.names

    @property
    def adapter_bytes(self) -> int:
        """What is kept of stored weights to switch adapters, on the GPU or in host memory."""
        return self._adapters.kept_bytes

    def load_adapter(self, name: str, source: str) -> None:
        """Load an adapter while the engine serves; any one thread may, also while another generates.

        Args:
            name: by which requests choose it; one of the same name is replaced.
            source: ``path[:scale]``, see :class:`~twinshot_engine.lora.AdapterSource`.

        Raises:
            InvalidRequestError: in one sentence, why it cannot be used; the others stay as they are.
        """
        if self._model.placement.engines is not None:
            raise InvalidRequestError("Engines of TensorRT take no adapters: those need a server without.")
        try:
            self._adapters.load(name, AdapterSource.parse(source))
        except (CheckpointError, ValueError) as error:
            raise InvalidRequestError(str(error)) from error

    def unload_adapter(self, name: str) -> None:
        """Let go of an adapter; see :meth:`load_adapter`.

        Raises:
            InvalidRequestError: there is none of that name.
        """
        self._adapters.unload(name)

    def warm(self, progress: Progress | None = None) -> None:
        """Do once whatever makes a first request slow, for every advertised size and caption length.

        Args:
            progress: called before each piece of work with its name and the fraction done; what it raises
                ends the warming.
        """
        report = progress or (lambda _stage, _fraction: None)
        advertised = Advertised(
            self._model.card.sizes.listed, self._config.batch_sizes, self._model.tokenizer.buckets
        )
        with torch.inference_mode():
            for name, done in self._stages.prepare(advertised):
                report(name, done)
        self._rehearse()
        report("ready", 1.0)

    def _rehearse(self) -> None:
        """Draw once at every size: what is left to a first request, such as buffers, is done here."""
        steps = min(self.info.steps, key=lambda count: (not self._renoises(count), count))
        for width, height in self._model.card.sizes.listed:
            self.generate([GenerateRequest("warm up", seed=0, width=width, height=height, steps=steps)])
            if self._model.placement.backend == "eager":
                break  # nothing is kept for a size there
        self._cache.clear()
        device = self._model.placement.device
        if device.type == "cuda":
            # The allocator keeps what is given back, so captions that are kept take nothing from the device.
            torch.empty(self._config.text_cache_bytes, dtype=torch.uint8, device=device)

    def _renoises(self, steps: int) -> bool:
        return any(constants.renoises for constants in self._model.passes[steps])

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
                f"{request.steps} steps are not supported; supported: {', '.join(map(str, self.info.steps))}."
            )
        self._check_guidance(request)
        self._adapters.check(request.adapter)
        if not 0 <= request.seed <= LARGEST_SEED:
            raise InvalidRequestError(f"The seed {request.seed} is outside of 0 to {LARGEST_SEED}.")
        self._model.tokenizer.encode(request.prompt)

    def _check_guidance(self, request: GenerateRequest) -> None:
        if request.guidance == 1 or request.steps in self.info.guided_steps:
            return
        able = ", ".join(map(str, self.info.guided_steps)) or "none"
        raise InvalidRequestError(
            f"The guidance {request.guidance:g} is not supported at {request.steps} steps, only by "
            f"multi-step schedules: {able} of those advertised."
        )

    @torch.inference_mode()
    def generate(self, requests: Sequence[GenerateRequest]) -> GeneratedBatch:
        """Draw a batch of validated requests of one size, step count, guidance and adapter.

        Raises:
            ValueError: the batch is empty, too large or of mixed sizes, steps, guidance or adapters.
            InvalidRequestError: a prompt has too many tokens, or the adapter was unloaded meanwhile.
        """
        self._check_batch(requests)
        first = requests[0]
        self._adapters.use(first.adapter)
        watch = Stopwatch(self._model.placement.device)
        captions = self.encode_text(requests)
        watch.lap("text")
        latents = self.denoise(self.draw_noise(requests), captions, first.steps, first.guidance)
        watch.lap("denoise")
        images = self.fetch(self.decode(latents))
        watch.lap("decode")
        return GeneratedBatch(images, StageTimes(**watch.stop()))

    @torch.inference_mode()
    def latents(self, requests: Sequence[GenerateRequest]) -> Tensor:
        """Return what :meth:`generate` would decode: ``[B, C, h, w]`` fp32 in the transformer's scale."""
        self._check_batch(requests)
        first = requests[0]
        self._adapters.use(first.adapter)
        captions = self.encode_text(requests)
        return self.denoise(self.draw_noise(requests), captions, first.steps, first.guidance)

    def encode_text(self, requests: Sequence[GenerateRequest]) -> list[Caption]:
        """Embed the prompts, or take them from the cache; new ones of one length may share a pass."""
        return self._encode([self._model.tokenizer.encode(request.prompt) for request in requests])

    def draw_noise(self, requests: Sequence[GenerateRequest]) -> Noise:
        """Seed a generator for every request."""
        shape = self._model.latent_shape(requests[0].width, requests[0].height)
        return Noise([request.seed for request in requests], shape, self._model.placement.device)

    def denoise(self, noise: Noise, captions: Sequence[Caption], steps: int, guidance: float = 1.0) -> Tensor:
        """Run the transformer along a schedule and return its estimate of the data, ``[B, C, h, w]`` fp32.

        With guidance (Ho and Salimans, arXiv 2207.12598) each step is taken with the prompt and with the
        negative one, and the model makes one of both.
        """
        batches = self._split(captions)
        negative = self._split(self._negative(len(captions))) if guidance != 1 else []
        latents = noise.draw()
        for constants in self._adapters.passes[steps]:
            fresh = noise.draw() if constants.renoises else None
            moved = self._move(latents, fresh, batches, constants)
            if negative:
                without = self._move(latents, fresh, negative, constants)
                moved = self._model.guide(latents, moved, without, guidance)
            latents = moved
        return latents

    def _negative(self, count: int) -> list[Caption]:
        return self._encode([self._model.negative_ids()]) * count

    def _move(
        self, latents: Tensor, fresh: Tensor | None, batches: Sequence[tuple[_Rows, Caption]], constants: Pass
    ) -> Tensor:
        """Move all latents along one pass, batch by batch."""
        moved = torch.empty_like(latents)
        for rows, caption in batches:
            own = None if fresh is None else fresh[rows]
            moved[rows] = self._stages.denoise(latents[rows], own, caption, constants)
        return moved

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents ``[B, C, h, w]`` to images ``[B, H, W, 3]`` uint8, on the device."""
        parts = torch.split(latents, self._stages.batches(len(latents)))
        if len(parts) == 1:
            return self._stages.decode(latents)
        return torch.cat([self._stages.decode(part).clone() for part in parts])

    def fetch(self, images: Tensor) -> NDArray[np.uint8]:
        """Copy images to the host, and wait for them."""
        if images.device.type == "cpu":
            return images.numpy()
        pinned = torch.empty(images.shape, dtype=images.dtype, pin_memory=True)
        pinned.copy_(images, non_blocking=True)
        torch.cuda.current_stream(images.device).synchronize()
        return pinned.numpy()

    def _encode(self, prompts: Sequence[list[int]]) -> list[Caption]:
        texts = [tuple(ids) for ids in prompts]
        found = {ids: self._cache.get(self._cache_key(ids)) for ids in dict.fromkeys(texts)}
        new = [ids for ids, caption in found.items() if caption is None]
        made = dict(self._encode_new(new))
        for ids, caption in made.items():
            self._cache.put(self._cache_key(ids), caption)
        known = {ids: caption for ids, caption in found.items() if caption is not None} | made
        return [known[ids] for ids in texts]

    def _cache_key(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        return self._adapters.number, *ids  # an adapter may change what the transformer makes of text

    def _encode_new(self, texts: Sequence[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], Caption]]:
        """Embed token ids that differ, in passes of one padded length."""
        padded = [self._model.tokenizer.pad(list(ids)) for ids in texts]
        by_length: dict[int, list[int]] = {}
        for row, tokens in enumerate(padded):
            by_length.setdefault(tokens.ids.shape[1], []).append(row)
        for rows in by_length.values():
            left = iter(rows)
            for count in self._stages.text_batches(len(rows)):
                some = list(islice(left, count))
                ids, lengths = (torch.cat(each) for each in zip(*(padded[row] for row in some), strict=True))
                caption = self._stages.encode(ids, lengths)
                for place, row in enumerate(some):
                    # A view of a batch would keep all of it in memory.
                    own = (
                        caption if count == 1 else tuple(each[place : place + 1].clone() for each in caption)
                    )
                    yield texts[row], own

    def _split(self, captions: Sequence[Caption]) -> list[tuple[_Rows, Caption]]:
        """Group images by their captions' shapes, in batches that one pass takes.

        Returns pairs of rows and what they share: captions of ``b`` images.
        """
        by_shape: dict[tuple[torch.Size, ...], list[int]] = {}
        for row, caption in enumerate(captions):
            by_shape.setdefault(tuple(tensor.shape for tensor in caption), []).append(row)
        batches: list[tuple[_Rows, Caption]] = []
        for rows in by_shape.values():
            left = iter(rows)
            for count in self._stages.batches(len(rows)):
                some = list(islice(left, count))
                own = [captions[row] for row in some]
                # One alone is not copied, which for SANA would be 54 MB.
                shared = own[0] if count == 1 else tuple(map(torch.cat, zip(*own, strict=True)))
                batches.append((_as_slice(some), shared))
        return batches

    def _check_batch(self, requests: Sequence[GenerateRequest]) -> None:
        if not 1 <= len(requests) <= self.max_batch:
            raise ValueError(f"a batch of {len(requests)} requests is not between 1 and {self.max_batch}")
        if len({(each.width, each.height, each.steps, each.guidance, each.adapter) for each in requests}) > 1:
            raise ValueError(
                "a batch shares one width, height, step count, guidance and adapter, but has "
                f"{[(each.width, each.height, each.steps, each.guidance, each.adapter) for each in requests]}"
            )
        if requests[0].steps not in self._model.passes:
            raise ValueError(
                f"{requests[0].steps} steps were not advertised: {', '.join(map(str, self.info.steps))} were"
            )


def _as_slice(rows: list[int]) -> _Rows:
    """Rows without a gap as a slice, which needs neither a copy nor a word with the device."""
    return slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] == len(rows) - 1 else rows


def _is_text(prompt: str) -> bool:
    try:
        prompt.encode()
    except UnicodeEncodeError:
        return False
    return True
