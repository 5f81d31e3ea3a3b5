"""How long an image takes in this process: each part, all parts on the device, and with the image file.

``text``, ``denoise`` and ``decode`` are single stages (decode ends with bytes on the device), ``total`` the
three in a row without a word between host and device, ``request`` what a caller of ``Engine.generate`` waits
for, tokenisation, noise, the copy to the host and the image file included. Every request has a prompt of its
own, so no cache answers. Random weights draw noise, which takes far longer to write than a picture does; for
them the file is made of a stand-in for a photograph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinshot_engine.benchmark.rows import Row, facts, quantiles
from twinshot_engine.benchmark.timing import sample_ms
from twinshot_engine.engine import Engine
from twinshot_engine.random_weights import PREFIX
from twinshot_engine.text import Caption, PromptTokenizer
from twinshot_engine.types import GenerateRequest

Encode = Callable[[NDArray[np.uint8]], bytes]
"""Makes an image file of ``[H, W, 3]`` uint8."""

PARTS = ("text", "denoise", "decode", "total", "request")

_WORDS = (
    "red",
    "car",
    "blue",
    "tree",
    "green",
    "house",
    "yellow",
    "boat",
    "white",
    "chair",
    "black",
    "clock",
)


@dataclass(frozen=True, slots=True)
class Job:
    """What is drawn: size in pixels, passes, prompt tokens with template, and how often it is measured."""

    width: int
    height: int
    steps: int = 1
    tokens: int = 128
    samples: int = 30
    warm: int = 5


@torch.inference_mode()
def measure_latency(engine: Engine, job: Job, encode: Encode, report: Callable[[str], None]) -> list[Row]:
    """Time every part.

    Args:
        engine: loaded and warm.
        job: what to draw.
        encode: makes an image file of ``[H, W, 3]`` uint8.
        report: told the name of each part before it is measured.

    Returns:
        A row for each of :data:`PARTS`.
    """
    common = describe(engine, job)
    rows = []
    for part, work in _works(engine, job, encode).items():
        report(part)
        device = torch.device("cpu") if part == "request" else engine.model.placement.device
        times = sample_ms(work, device, samples=job.samples, warm=job.warm)
        rows.append(common | {"part": part} | quantiles(times))
    rows[PARTS.index("total")] |= memory(engine.model.placement.device)
    return rows


def describe(engine: Engine, job: Job) -> Row:
    """What all rows of a measurement share."""
    info = engine.info
    return {
        "benchmark": "latency",
        "system": "twinshot",
        **facts(engine.model.placement.device),
        "checkpoint": info.name,
        "family": info.checkpoint.removeprefix(PREFIX) if info.checkpoint.startswith(PREFIX) else info.family,
        "precision": info.precision,
        "text_precision": info.text_precision,
        "backend": info.backend,
        "width": job.width,
        "height": job.height,
        "batch": 1,
        "steps": job.steps,
        "tokens": job.tokens,
    }


def memory(device: torch.device) -> Row:
    """Most memory that torch has held on a GPU so far, and what the whole process holds now, in GB (1e9)."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "peak_gb": round(torch.cuda.max_memory_reserved(device) / 1e9, 2),
        "device_gb": round((total - free) / 1e9, 2),
    }


def ready_row(engine: Engine, job: Job, warm_seconds: float) -> Row:
    """How long it took from the start of loading until the first request may come."""
    milliseconds = (engine.info.load_seconds + warm_seconds) * 1000
    return describe(engine, job) | {
        "part": "ready",
        "median_ms": round(milliseconds, 1),
        "load_ms": round(engine.info.load_seconds * 1000, 1),
        "warm_ms": round(warm_seconds * 1000, 1),
        "samples": 1,
    }


def make_prompt(tokenizer: PromptTokenizer, tokens: int, number: int) -> str:
    """Write a prompt of ``tokens`` tokens with its template, or a few less; each number has its own."""
    words = [_WORDS[(number // len(_WORDS) ** place) % len(_WORDS)] for place in range(3)]
    prompt = " ".join(words)
    for place in count():
        longer = f"{prompt} {_WORDS[(number + place) % len(_WORDS)]}"
        if len(tokenizer.encode(longer)) > tokens:
            break
        prompt = longer
    return prompt


def photograph(width: int, height: int) -> NDArray[np.uint8]:
    """Make a stand-in for a photograph, ``[height, width, 3]``: soft clouds of little colour, with grain.

    At quality 95 its JPEG has about the size of a photograph's, 0.3 bytes a pixel.
    """
    random = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    planes = []
    for _ in range(4):
        phase = np.exp(2j * np.pi * random.random(frequency.shape))
        plane = np.fft.irfft2(phase / frequency**1.6, (height, width))
        planes.append(plane / plane.std())
    light = 128 + 40 * planes[0] + random.normal(0, 1.5, (height, width))
    return np.stack([light + 10 * colour for colour in planes[1:]], axis=-1).clip(0, 255).astype(np.uint8)


def _works(engine: Engine, job: Job, encode: Encode) -> dict[str, Callable[[], object]]:
    stages, model = engine.stages, engine.model
    numbers = count()
    request = GenerateRequest("", seed=0, width=job.width, height=job.height, steps=job.steps)
    prompts = _prompts(engine, job, numbers)
    tokens = model.tokenizer.pad(model.tokenizer.encode(next(prompts)))
    noise = engine.draw_noise([request]).draw()

    def text() -> Caption:
        return stages.encode(tokens.ids, tokens.length)

    caption = text()

    def denoise(caption: Caption = caption) -> Tensor:
        latents = noise
        for constants in model.passes[job.steps]:
            latents = stages.denoise(latents, noise, caption, constants)
        return latents

    latents = denoise().clone()
    invented = engine.info.checkpoint.startswith(PREFIX)
    stand_in = photograph(job.width, job.height) if invented else None

    def complete() -> bytes:
        drawn = engine.generate([replace(request, prompt=next(prompts), seed=next(numbers))])
        return encode(drawn.images[0] if stand_in is None else stand_in)

    return {
        "text": text,
        "denoise": denoise,
        "decode": lambda: stages.decode(latents),
        "total": lambda: stages.decode(denoise(text())),
        "request": complete,
    }


def _prompts(engine: Engine, job: Job, numbers: Iterator[int]) -> Iterator[str]:
    """Prompts of their own, made beforehand so that making them is not measured."""
    needed = 2 * (job.samples + job.warm) + 2
    yield from [make_prompt(engine.model.tokenizer, job.tokens, next(numbers)) for _ in range(needed)]
