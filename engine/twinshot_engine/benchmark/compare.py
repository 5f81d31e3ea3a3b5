"""twinshot beside plain and compiled diffusers: one process, one GPU, the same weights and inputs.

Speed as in :mod:`~twinshot_engine.benchmark.latency`, and how far each system is from fp32: one full-size
pass of the transformer as the error's norm over that of stock diffusers in fp32, one decode in levels of 255.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from twinshot_engine.benchmark.latency import Encode, Job, describe, make_prompt, measure_latency, ready_row
from twinshot_engine.benchmark.rows import Row, quantiles
from twinshot_engine.benchmark.stock import StockPipeline, find_stock
from twinshot_engine.benchmark.timing import clock_ms, sample_ms
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.noise import Noise
from twinshot_engine.random_weights import RandomCheckpoint
from twinshot_engine.text import Tokens

Report = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """What every system is given: the weights, where to run, and what to draw."""

    checkpoint: RandomCheckpoint
    device: torch.device
    job: Job

    def stock(self, dtype: torch.dtype) -> StockPipeline:
        """Stock modules, none of them made yet."""
        return find_stock(self.checkpoint, self.device, dtype)

    @cached_property
    def tokens(self) -> Tokens:
        """Token ids of one prompt."""
        tokenizer = self.stock(torch.float32).tokenizer()
        return tokenizer.pad(tokenizer.encode(make_prompt(tokenizer, self.job.tokens, 0)))

    @cached_property
    def noise(self) -> Tensor:
        """Noise ``[1, C, h, w]`` to denoise."""
        return self._draw(seed=0)

    @cached_property
    def latents(self) -> Tensor:
        """Latents of the same shape to decode."""
        return self._draw(seed=1)

    def _draw(self, seed: int) -> Tensor:
        shape = self.stock(torch.float32).latent_shape(self.job.width, self.job.height)
        return Noise([seed], shape, self.device).draw()


@dataclass(frozen=True, slots=True)
class Outputs:
    """Denoised latents and decoded bytes of one system, on the host in fp32."""

    denoise: Tensor
    decode: Tensor


def compare(
    checkpoint: RandomCheckpoint,
    configs: Sequence[EngineConfig],
    job: Job,
    encode: Encode,
    report: Report,
    *,
    compiled: bool = True,
) -> Iterator[list[Row]]:
    """Measure every engine, then stock diffusers in bf16, eager and, if asked for, compiled.

    Args:
        checkpoint: what the configs name.
        configs: in the precisions to measure, on one device.
        job: what to draw; its size must be advertised.
        encode: makes an image file of ``[H, W, 3]`` uint8.
        report: told what is going on.
        compiled: whether to wait for the compiler.

    Yields:
        The rows of one system after another: those of
        :func:`~twinshot_engine.benchmark.latency.measure_latency` for an engine, and for diffusers those
        parts that it has; ``denoise`` rows have ``denoise_error``, ``decode`` rows ``decode_levels``.
    """
    setting = Setting(checkpoint, configs[0].placement().device, job)
    report("diffusers fp32, the reference")
    exact = _draw_exact(setting)
    described: Row = {}
    for config in configs:
        release()
        report(f"twinshot {config.precision}: loading")
        rows, outputs, described = _measure_engine(config, setting, encode, report)
        yield with_errors(rows, outputs, exact)
    plain = described | {"precision": "bf16", "text_precision": "bf16"}
    for compile_first in (False, True) if compiled else (False,):
        release()
        rows, outputs = _measure_stock(setting, plain, report, compiled=compile_first)
        yield with_errors(rows, outputs, exact)


def with_errors(rows: list[Row], outputs: Outputs, exact: Outputs) -> list[Row]:
    """Write into a system's rows how far its outputs are from exact ones.

    ``denoise_error`` is the norm of the difference over the norm; ``decode_levels`` the mean difference of
    bytes, in levels of 255.
    """
    error = _relative(outputs.denoise, exact.denoise)
    levels = float((outputs.decode - exact.decode).abs().mean())
    for row in rows:
        if row["part"] == "denoise":
            row["denoise_error"] = round(error, 6)
        elif row["part"] == "decode":
            row["decode_levels"] = round(levels, 4)
    return rows


def release() -> None:
    """Give back what is no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _measure_engine(
    config: EngineConfig, setting: Setting, encode: Encode, report: Report
) -> tuple[list[Row], Outputs, Row]:
    engine = Engine.load(config)
    warm_ms = clock_ms(engine.warm)
    job = setting.job
    rows = measure_latency(engine, job, encode, lambda part: report(f"twinshot {config.precision}: {part}"))
    rows.append(ready_row(engine, job, warm_ms / 1000))
    return rows, _draw(engine, setting), describe(engine, job)


@torch.inference_mode()
def _measure_stock(
    setting: Setting, described: Row, report: Report, *, compiled: bool
) -> tuple[list[Row], Outputs]:
    stock = setting.stock(torch.bfloat16)
    system = "diffusers-compiled" if compiled else "diffusers"
    if compiled:
        report(f"{system}: compiling")
        stock.compile()
    works = _works(stock, setting)
    outputs = Outputs(works["denoise"]().cpu(), works["decode"]().float().cpu())
    common = described | {"system": system, "backend": "compiled" if compiled else "eager"}
    rows = []
    for part, work in works.items():
        report(f"{system}: {part}")
        times = sample_ms(work, setting.device, samples=setting.job.samples, warm=setting.job.warm)
        rows.append(common | {"part": part} | quantiles(times))
    return rows, outputs


def _works(stock: StockPipeline, setting: Setting) -> dict[str, Callable[[], Any]]:
    """The parts to time; a caption is made at once, other modules when their part first runs."""
    caption = stock.encode(setting.tokens)

    def text() -> Any:
        return stock.encode(setting.tokens)

    return {
        "text": text,
        "denoise": lambda: stock.denoise(setting.noise, caption),
        "decode": lambda: stock.decode(setting.latents),
        "total": lambda: stock.decode(stock.denoise(setting.noise, text())),
    }


@torch.inference_mode()
def _draw(engine: Engine, setting: Setting) -> Outputs:
    constants = engine.model.passes[1][0]
    caption = engine.stages.encode(*setting.tokens)
    denoised = engine.stages.denoise(setting.noise, None, caption, constants).cpu()
    return Outputs(denoised, engine.stages.decode(setting.latents).float().cpu())


@torch.inference_mode()
def _draw_exact(setting: Setting) -> Outputs:
    stock = setting.stock(torch.float32)
    works = _works(stock, setting)
    with torch.backends.cudnn.flags(allow_tf32=False):
        denoised = works["denoise"]().cpu()
        stock.forget()  # a video decoder in fp32 wants the GPU for itself
        release()
        return Outputs(denoised, works["decode"]().float().cpu())


def _relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())
