"""Adapters on a GPU: graphs replay the switched weights, in fp8 too, and nothing of a failed load stays."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.errors import CheckpointError
from twinshot_engine.lora import adapters
from twinshot_engine.types import GenerateRequest
from twinshot_engine.weights import StoredPart

pytestmark = pytest.mark.gpu

REQUEST = GenerateRequest("a red apple", seed=3, steps=2)


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    weights = load_file(tiny / "transformer/diffusion_pytorch_model.safetensors")
    tensors = {}
    for name, weight in weights.items():
        if weight.dim() == 2 and any(part.isdigit() for part in name.split(".")):
            module = name.removesuffix(".weight")
            tensors[f"{module}.lora_A.weight"] = torch.randn(8, weight.shape[1]) * 0.1
            tensors[f"{module}.lora_B.weight"] = torch.randn(weight.shape[0], 8) * 0.1
    path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    save_file(tensors, path)
    return path


def load(folder: Path, *sources: str, **settings: Any) -> Engine:
    engine = Engine.load(EngineConfig(str(folder), "cuda", sizes=((256, 256),), adapters=sources, **settings))
    engine.warm()
    return engine


@pytest.mark.parametrize("roomy", [True, False], ids=["kept on the GPU", "kept pinned"])
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_switched_weights_are_those_of_merging(
    tiny: Path, adapter: Path, precision: str, roomy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "_ROOM", 2 if roomy else 1e12)
    served = load(tiny, f"style={adapter}", precision=precision)
    merged = load(tiny, str(adapter), precision=precision).latents([REQUEST])
    bare = load(tiny, precision=precision).latents([REQUEST])
    assert {tensor.device.type for tensor in served._adapters._kept.values()} == {"cuda" if roomy else "cpu"}
    assert not torch.allclose(bare, merged)
    for name, expected in ((None, bare), ("style", merged), (None, bare), ("style", merged)):
        assert torch.equal(served.latents([replace(REQUEST, adapter=name)]), expected)


def test_switching_keeps_no_memory(tiny: Path, adapter: Path) -> None:
    served = load(tiny, f"style={adapter}", precision="bf16")
    for name in ("style", None):
        served.generate([replace(REQUEST, adapter=name)])
    before = torch.cuda.memory_allocated()
    for name in ("style", None) * 3:
        served.generate([replace(REQUEST, adapter=name)])
    assert torch.cuda.memory_allocated() == before


def test_nothing_half_loaded_stays_on_the_gpu(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = StoredPart.read_stored

    def break_off(part: StoredPart, *rest: Any) -> Iterator[Any]:
        for count, entry in enumerate(read(part, *rest)):
            if part.folder.name == "vae" and count == 5:
                raise CheckpointError("a disk was unplugged.")
            yield entry

    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    monkeypatch.setattr(StoredPart, "read_stored", break_off)
    with pytest.raises(CheckpointError, match="unplugged") as caught:
        Engine.load(EngineConfig(str(tiny), "cuda"))
    assert torch.cuda.memory_allocated() == before
    assert caught.value.__traceback__ is not None
