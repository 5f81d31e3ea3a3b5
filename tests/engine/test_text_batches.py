"""Prompts that share a pass: every family embeds each as it would alone, and the engine sorts them out."""

from collections.abc import Callable
from pathlib import Path

import pytest
import qwen_image_checkpoint
import tiny_sana
import tiny_sd3
import torch
from transformers import PreTrainedTokenizerFast

from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.types import GenerateRequest

PROMPTS = ["a red apple", "two blue vases", "a photo of a red vase and two blue apples " * 4, "a vase"]

FAMILIES: dict[str, Callable[[Path, PreTrainedTokenizerFast], object]] = {
    "qwen-image": lambda folder, words: qwen_image_checkpoint.write_checkpoint(folder, words, second=True),
    "sana": lambda folder, _words: tiny_sana.write(folder, tiny_sana.TRANSFORMER, sprint=False),
    "sd3": lambda folder, _words: tiny_sd3.write_checkpoint(folder),
}


@pytest.fixture(scope="module", params=["z-image", *FAMILIES])
def engine(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny: Path,
    tokenizer: PreTrainedTokenizerFast,
) -> Engine:
    folder = tiny
    if request.param in FAMILIES:
        folder = tmp_path_factory.mktemp(request.param) / "checkpoint"
        FAMILIES[request.param](folder, tokenizer)
    return Engine.load(EngineConfig(str(folder), "cpu", steps=(1, 2)))


def asked(prompts: list[str]) -> list[GenerateRequest]:
    return [GenerateRequest(prompt, seed=0) for prompt in prompts]


@torch.inference_mode()
def test_a_shared_pass_embeds_each_as_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = engine.encode_text(asked(PROMPTS))
    engine._cache.clear()
    passes: list[int] = []
    encode = engine.stages.encode

    def counted(ids: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, ...]:
        passes.append(len(ids))
        return encode(ids, length)

    monkeypatch.setattr(engine.stages, "encode", counted)
    monkeypatch.setattr(engine.stages, "text_batches", lambda count: [count])
    together = engine.encode_text(asked([*PROMPTS, PROMPTS[0]]))
    assert sum(passes) == len(PROMPTS)
    assert max(passes) >= 3
    for one, other in zip([*alone, alone[0]], together, strict=True):
        for expected, actual in zip(one, other, strict=True):
            assert actual.shape == expected.shape
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_known_prompts_are_not_embedded_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    first = engine.encode_text(asked(PROMPTS[:2]))
    monkeypatch.setattr(engine.stages, "encode", None)
    again = engine.encode_text(asked([PROMPTS[1], PROMPTS[0]]))
    assert all(map(torch.equal, first[0], again[1]))
    assert all(map(torch.equal, first[1], again[0]))
