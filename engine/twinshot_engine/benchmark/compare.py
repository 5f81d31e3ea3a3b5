"""twinshot beside plain and compiled diffusers: one process, one GPU, the same weights and inputs.

Speed as in :mod:`~twinshot_engine.benchmark.latency`, and how far each system is from fp32: one full-size
pass of the transformer as the error's norm over that of stock diffusers in fp32, one decode in levels of 255.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinshot_engine.benchmark.latency import Encode, Job, describe, make_prompt, measure_latency, ready_row
from twinshot_engine.benchmark.rows import Row, quantiles
from twinshot_engine.benchmark.stock import StockPipeline
from twinshot_engine.benchmark.timing import clock_ms, sample_ms
from twinshot_engine.config import EngineConfig
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


@dataclass(frozen=True, slots=True)
class StockSetting:
    """What stock diffusers runs on, and how its rows are described."""

    described: Row
    device: torch.device
    inputs: Inputs
    job: Job

    def load(self, dtype: torch.dtype) -> StockPipeline:
        """Make stock modules with the checkpoint's weights."""
        return StockPipeline(find_random(str(self.described["checkpoint"])), self.device, dtype)

    def works(self, stock: StockPipeline) -> dict[str, Callable[[], Tensor]]:
        """The parts to time; a caption is made at once, the other modules when their part first runs."""
        length = int(self.inputs.length)
        caption = stock.encode(self.inputs.ids, length).clone()

        def text() -> Tensor:
            return stock.encode(self.inputs.ids, length)

        return {
            "text": text,
            "denoise": lambda: stock.denoise(self.inputs.noise, caption),
            "decode": lambda: stock.decode(self.inputs.latents),
            "total": lambda: stock.decode(stock.denoise(self.inputs.noise, text())),
        }


def compare(
    configs: Sequence[EngineConfig], job: Job, encode: Encode, report: Report, *, compiled: bool = True
) -> list[Row]:
    """Measure every engine, then stock diffusers eager and, if asked for, compiled, both in bf16.

    Args:
        configs: of one random checkpoint, in the precisions to measure.
        job: what to draw; its size must be advertised.
        encode: makes an image file of ``[H, W, 3]`` uint8.
        report: told what is going on.
        compiled: whether to wait for the compiler.

    Returns:
        Rows of :func:`~twinshot_engine.benchmark.latency.measure_latency` for each engine, and for diffusers
        those parts that it has; ``denoise`` rows have ``denoise_error``, ``decode`` rows ``decode_levels``.
    """
    rows: list[Row] = []
    drawn: list[tuple[list[Row], Outputs]] = []
    for config in configs:
        report(f"twinshot {config.precision}: loading")
        described, inputs, measured, outputs = _measure_engine(config, job, encode, report)
        drawn.append((measured, outputs))
        release()
    setting = StockSetting(described, config.placement().device, inputs, job)
    for compile_first in (False, True) if compiled else (False,):
        drawn.append(measure_stock(setting, report, torch.bfloat16, compiled=compile_first))
        release()
    report("diffusers fp32, the reference")
    exact = _draw_exact(setting)
    for measured, outputs in drawn:
        add_errors(measured, outputs, exact)
        rows += measured
    return rows


def make_inputs(engine: Engine, job: Job) -> Inputs:
    """Draw inputs that any system can use."""
    tokenizer = engine.model.tokenizer
    tokens = tokenizer.pad(tokenizer.encode(make_prompt(engine, job.tokens, 0)))
    request = GenerateRequest("", seed=0, width=job.width, height=job.height)
    noise = engine.draw_noise([request])
    return Inputs(tokens.ids, tokens.length, noise.draw(), noise.draw())


@torch.inference_mode()
def measure_stock(
    setting: StockSetting, report: Report, dtype: torch.dtype, *, compiled: bool
) -> tuple[list[Row], Outputs]:
    """Time stock diffusers, and keep what it drew.

    Args:
        setting: what to run on what.
        report: told what is going on.
        dtype: of weights and activations.
        compiled: compile before measuring.
    """
    stock = setting.load(dtype)
    system = "diffusers-compiled" if compiled else "diffusers"
    if compiled:
        report(f"{system}: compiling")
        stock.compile()
    works = setting.works(stock)
    outputs = Outputs(works["denoise"]().cpu(), works["decode"]().float().cpu())
    common = setting.described | {"system": system, "backend": "compiled" if compiled else "eager"}
    rows = []
    for part, work in works.items():
        report(f"{system}: {part}")
        times = sample_ms(work, setting.device, samples=setting.job.samples, warm=setting.job.warm)
        rows.append(common | {"part": part} | quantiles(times))
    return rows, outputs


def add_errors(rows: list[Row], outputs: Outputs, exact: Outputs) -> None:
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


def release() -> None:
    """Give back what is no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _measure_engine(
    config: EngineConfig, job: Job, encode: Encode, report: Report
) -> tuple[Row, Inputs, list[Row], Outputs]:
    engine = Engine.load(config)
    warm_ms = clock_ms(engine.warm)
    rows = measure_latency(engine, job, encode, lambda part: report(f"twinshot {config.precision}: {part}"))
    rows.append(ready_row(engine, job, warm_ms / 1000))
    inputs = make_inputs(engine, job)
    plain = {"precision": "bf16", "text_precision": "bf16"}
    return describe(engine, job) | plain, inputs, rows, _draw(engine, inputs)


@torch.inference_mode()
def _draw(engine: Engine, inputs: Inputs) -> Outputs:
    constants = engine.model.passes[1][0]
    caption = engine.stages.encode(inputs.ids, inputs.length)
    denoised = engine.stages.denoise(inputs.noise, inputs.noise, caption, constants).cpu()
    return Outputs(denoised, engine.stages.decode(inputs.latents).float().cpu())


@torch.inference_mode()
def _draw_exact(setting: StockSetting) -> Outputs:
    works = setting.works(setting.load(torch.float32))
    with torch.backends.cudnn.flags(allow_tf32=False):
        return Outputs(works["denoise"]().cpu(), works["decode"]().float().cpu())


def _relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())
