"""Qwen-Image on a GPU: graphs replay what eager computes, in one lane or two; fp8 stays close."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from qwen_image_checkpoint import tiny_configs

from twinshot_engine import random_weights
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.schedule import Steps
from twinshot_engine.transformer.dual_stream import DualStreamTransformer
from twinshot_engine.types import GenerateRequest

pytestmark = pytest.mark.gpu

SIZES = ((256, 256), (272, 256))
REQUESTS = [
    GenerateRequest("a red apple", seed=3, width=272, height=256),
    GenerateRequest("two blue vases and a red apple " * 20, seed=4, width=272, height=256),
    GenerateRequest("a photo of a vase", seed=5, width=272, height=256),
]
WIDE = {"attention_head_dim": 128, "axes_dims_rope": [16, 56, 56], "num_attention_heads": 2}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_configs(random_weights.PUBLISHED["qwen-image"], **WIDE)
    monkeypatch.setattr(random_weights, "PUBLISHED", {"tiny": tiny})


def load(device: str = "cuda", **settings: object) -> Engine:
    options = {"sizes": SIZES, "steps": (1, 2)} | settings
    engine = Engine.load(EngineConfig("random:tiny", device, **options))  # type: ignore[arg-type]
    engine.warm()
    return engine


def far(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("batch_sizes", [(1,), (1, 2)])
def test_replay_equals_eager(
    monkeypatch: pytest.MonkeyPatch, overlaps: bool, batch_sizes: tuple[int, ...]
) -> None:
    eager = load(precision="bf16", backend="eager")
    monkeypatch.setattr(DualStreamTransformer, "overlaps", overlaps)
    fused = load(precision="bf16", batch_sizes=batch_sizes)
    expected = eager.latents(REQUESTS)
    for _ in range(3):  # a race between lanes need not show at once
        assert far(fused.latents(REQUESTS), expected) < 1e-2


@pytest.mark.parametrize("batch_sizes", [(1,), (1, 2)])
def test_guided_replay_equals_eager(batch_sizes: tuple[int, ...]) -> None:
    steps = (1, Steps(3, "multi"))
    requests = [replace(request, steps=3, guidance=4.0) for request in REQUESTS]
    expected = load(precision="fp32", backend="eager", steps=steps).latents(requests)
    fused = load(precision="fp32", batch_sizes=batch_sizes, steps=steps)
    assert far(fused.latents(requests), expected) < 1e-3


@pytest.mark.parametrize("overlaps", [False, True])
def test_fp8_stays_close(monkeypatch: pytest.MonkeyPatch, overlaps: bool) -> None:
    monkeypatch.setattr(DualStreamTransformer, "overlaps", overlaps)
    exact = load(precision="fp32", backend="eager").latents(REQUESTS)
    fp8 = load(precision="fp8", text_fp8=True)
    assert 1e-3 < far(fp8.latents(REQUESTS), exact) < 0.1


def test_pictures_differ() -> None:
    images = load(precision="bf16").generate(REQUESTS).images
    assert images.std() > 5
    assert len({image.tobytes() for image in images}) == len(REQUESTS)


def test_requests_allocate_nothing_on_the_device() -> None:
    engine = load(precision="bf16")
    engine.generate(REQUESTS)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["num_alloc_retries"], torch.cuda.memory_reserved()
    engine.generate(REQUESTS)
    after = torch.cuda.memory_stats()["num_alloc_retries"], torch.cuda.memory_reserved()
    assert before == after
