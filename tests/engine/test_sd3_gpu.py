"""Stable Diffusion 3.5 on a GPU: graphs replay what eager computes, with one lane or two; fp8 stays close."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_sd3 import write_checkpoint

from twinshot_engine.benchmark.compare import compare
from twinshot_engine.benchmark.latency import Job
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.random_weights import find_random
from twinshot_engine.types import GenerateRequest

pytestmark = pytest.mark.gpu

SIZES = ((256, 256), (272, 256))
REQUESTS = [
    GenerateRequest(prompt, seed, 272, 256, steps=2)
    for seed, prompt in enumerate(["a red apple", "two blue vases " * 9, "a photo of a vase"])
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd3")
    write_checkpoint(folder)
    return folder


def load(folder: Path, **settings: object) -> Engine:
    options = {"sizes": SIZES, "steps": (1, 2)} | settings
    engine = Engine.load(EngineConfig(str(folder), "cuda", **options))  # type: ignore[arg-type]
    engine.warm()
    return engine


def far(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("batch_sizes", [(1,), (1, 2)])
def test_replay_equals_eager(folder: Path, batch_sizes: tuple[int, ...]) -> None:
    expected = load(folder, precision="bf16", backend="eager").latents(REQUESTS)
    fused = load(folder, precision="bf16", batch_sizes=batch_sizes, text_cache_bytes=0)
    assert far(fused.latents(REQUESTS), expected) < 1e-2


def test_fp32_is_what_the_cpu_draws(folder: Path) -> None:
    gpu, cpu = load(folder, precision="fp32"), Engine.load(EngineConfig(str(folder), "cpu", steps=(1, 2)))
    assert far(gpu.latents(REQUESTS).cpu(), cpu.latents(REQUESTS)) < 1e-4


def test_fp8_stays_close(folder: Path) -> None:
    exact = load(folder, precision="fp32", backend="eager").latents(REQUESTS)
    assert 1e-3 < far(load(folder, precision="fp8", text_fp8=True).latents(REQUESTS), exact) < 0.15


def test_requests_allocate_nothing_on_the_device(folder: Path) -> None:
    engine = load(folder, precision="bf16")
    engine.generate(REQUESTS)
    before = torch.cuda.memory_stats()["num_device_alloc"]
    images = engine.generate(REQUESTS).images
    assert torch.cuda.memory_stats()["num_device_alloc"] == before
    assert len({image.tobytes() for image in images}) == len(REQUESTS)
    assert np.std(images) > 1


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_a_full_size_pass_is_as_exact_as_diffusers() -> None:
    config = EngineConfig("random:sd3.5-medium", "cuda", "bf16", sizes=((1024, 1024),), steps=(1,))
    checkpoint, job = find_random(config.checkpoint), Job(1024, 1024, samples=1, warm=0)
    systems = compare(checkpoint, [config], job, lambda _: b"", lambda _: None, compiled=False)
    rows = [row for rows in systems for row in rows]
    for key in ("denoise_error", "decode_levels"):
        ours, theirs = (row[key] for row in rows if key in row)
        assert ours <= 1.5 * theirs, f"{key}: {ours}, diffusers in bf16: {theirs}"
