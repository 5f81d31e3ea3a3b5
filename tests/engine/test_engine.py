"""The engine: what it accepts, what it draws, and that neighbours never matter."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.errors import CheckpointError, InvalidRequestError
from twinshot_engine.noise import Noise
from twinshot_engine.types import GenerateRequest

SHORT = GenerateRequest("a red apple", seed=3)
LONG = GenerateRequest("two blue vases and a red apple " * 3, seed=4)
OTHER = GenerateRequest("a photo of a vase", seed=5)


def test_generates_a_batch(engine: Engine) -> None:
    batch = engine.generate([SHORT, OTHER])
    assert batch.images.shape == (2, 256, 256, 3)
    assert batch.images.dtype == np.uint8
    assert batch.images.std() > 1
    times = batch.times
    assert min(times.text, times.denoise, times.decode) > 0
    assert (times.queue, times.encode) == (0, 0)


def test_sizes_need_not_be_square(engine: Engine) -> None:
    batch = engine.generate([replace(SHORT, width=320, height=272)])
    assert batch.images.shape == (1, 272, 320, 3)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_neighbours_and_caption_lengths_do_not_matter(engine: Engine, steps: int) -> None:
    requests = [replace(request, steps=steps) for request in (SHORT, LONG, OTHER)]
    together = engine.latents(requests)
    alone = torch.cat([engine.latents([request]) for request in requests])
    assert (together - alone).abs().max() / alone.abs().max() < 1e-5


def test_the_seed_decides(engine: Engine) -> None:
    same, again, other = (
        engine.latents([SHORT]),
        engine.latents([SHORT]),
        engine.latents([replace(SHORT, seed=9)]),
    )
    assert torch.equal(same, again)
    assert not torch.allclose(same, other)


def test_noise_continues_each_generator() -> None:
    noise = Noise([3, 2**63 - 1], (8, 4, 4), torch.device("cpu"))
    first, second = noise.draw(), noise.draw()
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(first[0], torch.randn(8, 4, 4, generator=generator))
    assert torch.equal(second[0], torch.randn(8, 4, 4, generator=generator))


def test_bf16_is_close_to_fp32(engine: Engine, tiny: Path) -> None:
    half = Engine.load(EngineConfig(str(tiny), device="cpu", precision="bf16"))
    exact, rough = engine.latents([SHORT]), half.latents([SHORT])
    assert half.info.precision == "bf16"
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() / exact.abs().max() < 0.1
    assert half.generate([SHORT]).images.dtype == np.uint8


def test_info_tells_what_was_loaded(engine: Engine, tiny: Path) -> None:
    info = engine.info
    assert (info.family, info.checkpoint, info.revision) == ("ZImagePipeline", str(tiny), None)
    assert (info.device, info.precision, info.torch_version) == ("cpu", "fp32", torch.__version__)
    assert set(info.parameters) == {"text", "transformer", "decoder"}
    assert info.sizes[0] == (1024, 1024)
    assert info.size_rule == "multiples of 16 from 256 to 1024"
    assert (tuple(info.steps), info.max_prompt_tokens) == ((1, 2, 4), 192)
    assert (info.text_precision, info.backend) == ("fp32", "eager")
    assert info.load_seconds > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "The prompt is empty."),
        ({"prompt": " \n\t"}, "The prompt is empty."),
        ({"prompt": "a \ud800 vase"}, "lone surrogate"),
        ({"prompt": "vase " * 300}, r"The prompt has \d+ tokens .* limit of 192."),
        ({"width": 250}, r"The size 250x256 is not supported; supported: multiples of 16 from 256 to 1024\."),
        ({"height": 2048}, "The size 256x2048 is not supported"),
        ({"height": -256}, "not supported"),
        ({"steps": 0}, "0 steps are not supported; supported: 1, 2, 4."),
        ({"steps": 3}, "3 steps are not supported"),
        ({"seed": -1}, "The seed -1 is outside of 0 to 9223372036854775807."),
        ({"seed": 2**63}, "The seed 9223372036854775808 is outside"),
    ],
)
def test_invalid_requests_are_explained(engine: Engine, change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        engine.validate(replace(SHORT, **change))  # type: ignore[arg-type]


def test_valid_requests_pass(engine: Engine) -> None:
    for request in (SHORT, LONG, replace(SHORT, width=1024, steps=4, seed=2**63 - 1, prompt="猫 \0 🐈")):
        engine.validate(request)


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([], "a batch of 0 requests is not between 1 and 8"),
        ([SHORT] * 9, "a batch of 9 requests"),
        ([SHORT, replace(SHORT, width=512)], "shares one width"),
        ([SHORT, replace(SHORT, steps=2)], "shares one width, height, step count"),
    ],
)
def test_impossible_batches_are_an_error(
    engine: Engine, requests: list[GenerateRequest], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        engine.generate(requests)


def test_a_card_names_and_limits(
    tiny_copy: Path, load: Callable[[Path], Engine], write_card: Callable[..., None]
) -> None:
    write_card(
        tiny_copy,
        sizes=[[256, 256], [320, 256]],
        name="mini",
        description="tiny",
        vocabulary={"objects": ["vase"]},
    )
    engine = load(tiny_copy)
    info = engine.info
    assert (info.name, info.description, info.vocabulary) == ("mini", "tiny", {"objects": ["vase"]})
    assert (tuple(info.sizes), info.size_rule) == (((256, 256), (320, 256)), "256x256, 320x256")
    engine.validate(replace(SHORT, width=320))
    with pytest.raises(InvalidRequestError, match="512x512 is not supported; supported: 256x256, 320x256"):
        engine.validate(replace(SHORT, width=512, height=512))
    engine.warm()


def test_loading_reports_progress_and_can_be_stopped(tiny: Path) -> None:
    seen: list[tuple[str, float]] = []
    Engine.load(EngineConfig(str(tiny), device="cpu"), lambda stage, done: seen.append((stage, done)))
    assert seen[0] == ("checkpoint", 0.0)
    assert seen[-1] == ("ready", 1.0)
    assert [done for _, done in seen] == sorted(done for _, done in seen)

    def stop(stage: str, _done: float) -> None:
        raise KeyboardInterrupt(stage)

    with pytest.raises(KeyboardInterrupt, match="checkpoint"):
        Engine.load(EngineConfig(str(tiny), device="cpu"), stop)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"device": "tpu"}, "device 'tpu' is not"),
        ({"precision": "fp16"}, "precision 'fp16' is not 'auto', 'fp32', 'bf16' or 'fp8'"),
        ({"backend": "onnx"}, "backend 'onnx' is not 'auto', 'eager', 'fused' or 'tensorrt'"),
        ({"steps": ()}, "steps is empty"),
        ({"batch_sizes": (2, 4)}, r"batch_sizes \(2, 4\) are not"),
        ({"batch_sizes": (1, 0)}, r"batch_sizes \(1, 0\) are not"),
        ({"text_cache_bytes": -1}, "text_cache_bytes -1"),
        ({"max_batch": 0}, "max_batch 0"),
        ({"threads": 0}, "threads 0"),
    ],
)
def test_wrong_settings_are_named(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig(**setting)  # type: ignore[arg-type]


def test_a_missing_device_is_named() -> None:
    with pytest.raises(ValueError, match="device 'cuda:99' does not exist"):
        EngineConfig(device="cuda:99").placement()


@pytest.mark.parametrize("setting", [{"precision": "fp8"}, {"text_fp8": True}])
def test_fp8_needs_a_gpu(setting: dict[str, object]) -> None:
    config = EngineConfig(device="cpu", **setting)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"fp8 needs a GPU .* 'fp32' and 'bf16' are accepted there"):
        config.placement()


def test_graphs_need_a_gpu() -> None:
    with pytest.raises(ValueError, match="backend 'fused' needs a GPU, not 'cpu': 'eager' is accepted there"):
        EngineConfig(device="cpu", backend="fused").placement()


def test_advertised_steps_and_sizes_are_kept_to(tiny: Path) -> None:
    engine = Engine.load(EngineConfig(str(tiny), device="cpu", steps=(5, 30), sizes=((320, 256), (256, 256))))
    assert engine.info.sizes == ((320, 256), (256, 256))
    assert engine.info.size_rule == "320x256, 256x256"
    assert engine.generate([replace(SHORT, steps=5, width=320)]).images.shape == (1, 256, 320, 3)
    with pytest.raises(InvalidRequestError, match="1 steps are not supported; supported: 5, 30"):
        engine.validate(replace(SHORT, width=320))
    with pytest.raises(InvalidRequestError, match="512x512 is not supported; supported: 320x256, 256x256"):
        engine.validate(replace(SHORT, steps=5, width=512, height=512))


def test_a_size_that_the_model_cannot_draw_is_not_advertised(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="Sizes 250x256 are not supported; supported: multiples of 16"):
        Engine.load(EngineConfig(str(tiny), device="cpu", sizes=((256, 256), (250, 256))))


def test_a_step_count_without_a_schedule_is_named(tiny: Path) -> None:
    with pytest.raises(ValueError, match="101 steps are not supported: 1 to 100 are"):
        Engine.load(EngineConfig(str(tiny), device="cpu", steps=(1, 101)))


def test_prompts_are_encoded_once(tiny: Path) -> None:
    engine = Engine.load(EngineConfig(str(tiny), device="cpu"))
    first, again = engine.generate([SHORT, SHORT]), engine.generate([SHORT])
    assert np.array_equal(first.images[:1], again.images)
    statistics = engine.cache_statistics
    assert (statistics.hits, statistics.misses, statistics.entries) == (1, 1, 1)  # once a batch
    without = Engine.load(EngineConfig(str(tiny), device="cpu", text_cache_bytes=0))
    assert np.array_equal(without.generate([SHORT]).images, again.images)
    assert without.cache_statistics.entries == 0


def test_automatic_choices_fit_the_machine() -> None:
    placement = EngineConfig().placement()
    assert placement.precision == ("bf16" if placement.device.type == "cuda" else "fp32")
