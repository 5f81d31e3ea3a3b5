"""twinshot beside plain and compiled diffusers: one process, one GPU, the same weights and inputs.

Speed as in :mod:`~twinshot_engine.benchmark.latency`, and how far each system is from fp32: one full-size
pass of the transformer as the error's norm over that of stock diffusers in fp32, one decode in levels of 255.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from twinshot_engine.benchmark.latency import Job, describe, make_prompt
from twinshot_engine.benchmark.rows import Row, quantiles
from twinshot_engine.benchmark.stock import StockPipeline
from twinshot_engine.benchmark.timing import sample_ms
from twinshot_engine.engine import Engine
from twinshot_engine.random_weights import find_random
from twinshot_engine.types import GenerateRequest

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What every system is given: token ids and their count, noise, and latents to decode."""

    ids: Tensor
    length: Tensor
    noise: Tensor
    latents: Tensor


@dataclass(frozen=True, slots=True)
class Outputs:
    """Denoised latents and decoded bytes of one system, on the host in fp32."""

    denoise: Tensor
    decode: Tensor


def make_inputs(engine: Engine, job: Job) -> Inputs:
    """Draw inputs that any system can use."""
    tokenizer = engine.model.tokenizer
    tokens = tokenizer.pad(tokenizer.encode(make_prompt(engine, job.tokens, 0)))
    request = GenerateRequest("", seed=0, width=job.width, height=job.height)
    noise = engine.draw_noise([request])
    return Inputs(tokens.ids, tokens.length, noise.draw(), noise.draw())


@torch.inference_mode()
def measure_stock(
    engine: Engine, job: Job, inputs: Inputs, report: Report, *, dtype: torch.dtype, compiled: bool
) -> tuple[list[Row], Outputs]:
    """Time stock diffusers, and keep what it drew.

    Args:
        engine: tells the checkpoint and device.
        job: sizes and counts.
        inputs: as given to the engine.
        report: told what is going on.
        dtype: of weights and activations.
        compiled: compile before measuring.
    """
    device = engine.model.placement.device
    stock = StockPipeline(find_random(engine.info.checkpoint), device, dtype)
    if compiled:
        stock.compile()
    length = int(inputs.length)

    def text() -> Tensor:
        return stock.encode(inputs.ids, length)

    caption = text().clone()
    works: dict[str, Callable[[], Tensor]] = {
        "text": text,
        "denoise": lambda: stock.denoise(inputs.noise, caption),
        "decode": lambda: stock.decode(inputs.latents),
        "total": lambda: stock.decode(stock.denoise(inputs.noise, text())),
    }
    outputs = Outputs(works["denoise"]().cpu(), works["decode"]().float().cpu())
    precision = _NAMES[dtype]
    common = describe(engine, job) | {
        "system": "diffusers-compiled" if compiled else "diffusers",
        "precision": precision,
        "text_precision": precision,
        "backend": "compiled" if compiled else "eager",
    }
    rows = []
    for part, work in works.items():
        report(f"{common['system']} {precision} {part}")
        times = sample_ms(work, device, samples=job.samples, warm=job.warm)
        rows.append(common | {"part": part} | quantiles(times))
    return rows, outputs


@torch.inference_mode()
def draw(engine: Engine, inputs: Inputs) -> Outputs:
    """Run the engine's stages once on the inputs."""
    constants = engine.model.passes[1][0]
    caption = engine.stages.encode(inputs.ids, inputs.length)
    denoised = engine.stages.denoise(inputs.noise, inputs.noise, caption, constants).cpu()
    return Outputs(denoised, engine.stages.decode(inputs.latents).float().cpu())


def errors(outputs: Outputs, exact: Outputs) -> Row:
    """How far outputs are from exact ones: norm of the difference over norm; levels of 255 for bytes."""
    difference = (outputs.decode - exact.decode).abs()
    return {
        "denoise_error": round(_relative(outputs.denoise, exact.denoise), 6),
        "decode_mean_levels": round(float(difference.mean()), 4),
    }


def release() -> None:
    """Give back what is no longer used."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def _relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())
