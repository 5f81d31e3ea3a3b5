"""Adapters: every way of storing one, against weights merged by the formula and written as a checkpoint."""

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from twinshot_engine.adapter_source import AdapterSource
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.errors import CheckpointError, InvalidRequestError
from twinshot_engine.lora.low_rank import LowRank
from twinshot_engine.types import GenerateRequest

REQUEST = GenerateRequest("a red apple", seed=3, steps=2)
STORED = "transformer/diffusion_pytorch_model.safetensors"
RANK, ALPHA = 4, 6.0
MODULES = [
    *(f"layers.0.attention.to_{part}" for part in "qkv"),
    "layers.1.attention.to_out.0",
    "layers.1.feed_forward.w2",
    "noise_refiner.0.feed_forward.w1",
    "context_refiner.0.attention.to_v",
    "cap_embedder.1",
    "t_embedder.mlp.0",
    "layers.0.adaLN_modulation.0",
]
Pairs = dict[str, tuple[Tensor, Tensor]]


def make_pairs(tiny: Path, seed: int = 1) -> Pairs:
    """Matrices A and B for each module."""
    weights, generator = load_file(tiny / STORED), torch.Generator().manual_seed(seed)
    sides = {module: weights[f"{module}.weight"].shape for module in MODULES}
    return {
        module: (
            torch.randn(RANK, columns, generator=generator) * 0.1,
            torch.randn(rows, RANK, generator=generator) * 0.1,
        )
        for module, (rows, columns) in sides.items()
    }


@pytest.fixture(scope="module")
def pairs(tiny: Path) -> Pairs:
    return make_pairs(tiny)


@pytest.fixture
def merged(tiny_copy: Path, pairs: Pairs) -> Callable[[float], Engine]:
    """A checkpoint whose weights are W + scale B A."""

    def make(scale: float) -> Engine:
        weights = load_file(tiny_copy / STORED)
        for module, (down, up) in pairs.items():
            weights[f"{module}.weight"] += (scale * up.double() @ down.double()).float()
        save_file(weights, tiny_copy / STORED)
        return load(tiny_copy)

    return make


def load(folder: Path, *adapters: str, **more: Any) -> Engine:
    return Engine.load(EngineConfig(str(folder), device="cpu", adapters=adapters, **more))


def close(actual: Tensor, expected: Tensor) -> bool:
    return bool((actual - expected).abs().max() / expected.abs().max() < 1e-4)


def peft(folder: Path, pairs: Pairs) -> Path:
    """A folder as PEFT saves it: alpha is in the config."""
    folder.mkdir()
    tensors = {}
    for module, (down, up) in pairs.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = down
        tensors[f"base_model.model.{module}.lora_B.weight"] = up
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "use_dora": False, "alpha_pattern": {}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def diffusers(folder: Path, pairs: Pairs) -> Path:
    """A file as a diffusers pipeline saves it: alpha is in the file's header."""
    folder.mkdir()
    tensors = {}
    for module, (down, up) in pairs.items():
        tensors[f"transformer.{module}.lora_A.weight"] = down
        tensors[f"transformer.{module}.lora_B.weight"] = up
    metadata = {"transformer.r": RANK, "transformer.lora_alpha": ALPHA}
    path = folder / "pytorch_lora_weights.safetensors"
    save_file(tensors, path, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(metadata)})
    return path


def kohya(folder: Path, pairs: Pairs) -> Path:
    """Underscores for dots, and a tensor of alpha beside each pair."""
    folder.mkdir()
    tensors = {}
    for module, (down, up) in pairs.items():
        flat = f"lora_unet_{module.replace('.', '_')}"
        tensors |= {
            f"{flat}.lora_down.weight": down,
            f"{flat}.lora_up.weight": up,
            f"{flat}.alpha": torch.tensor(ALPHA),
        }
    save_file(tensors, folder / "style.safetensors")
    return folder


def comfy(folder: Path, pairs: Pairs, flat: bool = False) -> Path:
    """The original release's names: one update, three times as wide, for query, key and value."""
    folder.mkdir()
    fused = {name: pair for name, pair in pairs.items() if not name.startswith("layers.0.attention.to_")}
    down = torch.cat([pairs[f"layers.0.attention.to_{part}"][0] for part in "qkv"])
    ups = [pairs[f"layers.0.attention.to_{part}"][1] for part in "qkv"]
    fused["layers.0.attention.qkv"] = down, torch.block_diag(*ups)
    tensors = {}
    for module, (a, b) in fused.items():
        name = module.replace("to_out.0", "out")
        stem = f"lora_unet_{name.replace('.', '_')}" if flat else f"diffusion_model.{name}"
        # Of the rank of the matrices, so that alpha over rank stays what it is.
        alpha = torch.tensor(ALPHA / RANK * len(a))
        tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b, f"{stem}.alpha": alpha}
    save_file(tensors, folder / "lora.safetensors")
    return folder / "lora.safetensors"


FORMS: dict[str, Callable[[Path, Pairs], Path]] = {
    "peft": peft,
    "diffusers": diffusers,
    "kohya": kohya,
    "comfy": comfy,
    "kohya, fused": lambda folder, pairs: comfy(folder, pairs, flat=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_update(
    tiny: Path, tmp_path: Path, pairs: Pairs, merged: Callable[[float], Engine], form: str
) -> None:
    source = FORMS[form](tmp_path / "adapter", pairs)
    expected = merged(ALPHA / RANK).latents([REQUEST])
    assert close(load(tiny, str(source)).latents([REQUEST]), expected)
    served = load(tiny, f"style={source}")
    assert list(served.adapters) == ["style"]
    assert close(served.latents([replace(REQUEST, adapter="style")]), expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_switching_leaves_no_trace(tiny: Path, tmp_path: Path, pairs: Pairs, precision: str) -> None:
    one, two = peft(tmp_path / "one", pairs), peft(tmp_path / "two", make_pairs(tiny, seed=2))
    served = load(tiny, f"one={one}", f"two={two}:0.5", precision=precision)
    bare = load(tiny, precision=precision).latents([REQUEST])
    expected = {
        None: bare,
        "one": load(tiny, str(one), precision=precision).latents([REQUEST]),
        "two": load(tiny, f"{two}:0.5", precision=precision).latents([REQUEST]),
    }
    assert not close(expected["one"], bare)
    for name in (None, "one", "two", None, "two", "one", "one", None):
        assert torch.equal(served.latents([replace(REQUEST, adapter=name)]), expected[name])


def test_strength_and_stacking(
    tiny: Path, tmp_path: Path, pairs: Pairs, merged: Callable[[float], Engine]
) -> None:
    source = peft(tmp_path / "adapter", pairs)
    expected = merged(ALPHA / RANK).latents([REQUEST])
    halves = load(tiny, f"{source}:0.5", f"more={source}:0.5", f"less={source}:-0.5")
    assert close(halves.latents([replace(REQUEST, adapter="more")]), expected)
    assert close(halves.latents([replace(REQUEST, adapter="less")]), load(tiny).latents([REQUEST]))


def test_peft_patterns_and_rank_stabilised_scales(tiny: Path, tmp_path: Path, pairs: Pairs) -> None:
    folder = peft(tmp_path / "adapter", pairs)
    change = {"use_rslora": True, "alpha_pattern": {"feed_forward.w2": 10.0, "cap_embedder.1": 2.0}}
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    plain = tmp_path / "plain.safetensors"
    alphas = {"layers.1.feed_forward.w2": 10.0, "cap_embedder.1": 2.0}
    tensors = {}
    for module, (down, up) in pairs.items():
        tensors |= {f"{module}.lora_A.default.weight": down, f"{module}.lora_B.default.weight": up}
        tensors[f"{module}.alpha"] = torch.tensor(alphas.get(module, ALPHA) * RANK**0.5)
    save_file(tensors, plain)
    assert close(load(tiny, str(folder)).latents([REQUEST]), load(tiny, str(plain)).latents([REQUEST]))


def test_adapters_come_and_go_while_serving(tiny: Path, tmp_path: Path, pairs: Pairs) -> None:
    served = load(tiny)
    bare = served.latents([REQUEST])
    chosen = replace(REQUEST, adapter="style")
    with pytest.raises(InvalidRequestError, match="The adapter 'style' is not loaded; loaded: none"):
        served.validate(chosen)
    served.load_adapter("style", str(peft(tmp_path / "one", pairs)))
    served.validate(chosen)
    first = served.latents([chosen])
    served.load_adapter("style", str(peft(tmp_path / "two", make_pairs(tiny, seed=2))))
    second = served.latents([chosen])  # of the same prompt, whose caption the adapter changes too
    assert not close(first, second)
    served.unload_adapter("style")
    assert list(served.adapters) == []
    assert torch.equal(served.latents([REQUEST]), bare)
    for call in (lambda: served.unload_adapter("style"), lambda: served.generate([chosen])):
        with pytest.raises(InvalidRequestError, match="The adapter 'style' is not loaded"):
            call()


def test_what_no_adapter_needs_is_not_kept(tiny: Path, tmp_path: Path, pairs: Pairs) -> None:
    few = {name: pair for name, pair in pairs.items() if name.endswith("to_q")}
    served = load(tiny, f"few={peft(tmp_path / 'few', few)}")
    size = served.adapter_bytes
    served.load_adapter("many", str(peft(tmp_path / "many", pairs)))
    assert served.adapter_bytes > size > 0
    served.latents([replace(REQUEST, adapter="many")])
    served.unload_adapter("many")
    assert served.adapter_bytes > size  # still in use
    served.latents([REQUEST])
    assert served.adapter_bytes == size
    served.unload_adapter("few")
    assert served.adapter_bytes == 0


def test_adapters_are_loaded_while_another_thread_draws(tiny: Path, tmp_path: Path, pairs: Pairs) -> None:
    one, two = peft(tmp_path / "one", pairs), peft(tmp_path / "two", make_pairs(tiny, seed=2))
    served = load(tiny, f"fixed={one}", f"other={two}")
    expected = {name: served.latents([replace(REQUEST, adapter=name)]) for name in (None, "fixed", "other")}

    def come_and_go() -> None:
        for _ in range(10):
            served.load_adapter("guest", str(two))
            served.unload_adapter("guest")

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(come_and_go)
        while not done.done():
            for name, latents in expected.items():
                assert torch.equal(served.latents([replace(REQUEST, adapter=name)]), latents)
        done.result()


def test_a_batch_has_one_adapter(tiny: Path, tmp_path: Path, pairs: Pairs) -> None:
    served = load(tiny, f"style={peft(tmp_path / 'one', pairs)}")
    with pytest.raises(ValueError, match="shares one width, height, step count, guidance and adapter"):
        served.generate([REQUEST, replace(REQUEST, adapter="style")])


def test_a_failed_switch_is_made_good_by_the_next(
    tiny: Path, tmp_path: Path, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = load(tiny, f"style={peft(tmp_path / 'one', pairs)}")
    bare = served.latents([REQUEST])
    calls = []

    def fail(update: LowRank, weight: Tensor) -> Tensor:
        calls.append(weight)
        if len(calls) > 3:
            raise MemoryError
        return weight + 1

    with monkeypatch.context() as patch:
        patch.setattr(LowRank, "__call__", fail)
        with pytest.raises(MemoryError):
            served.latents([replace(REQUEST, adapter="style")])
    assert torch.equal(served.latents([REQUEST]), bare)


MODULE = "transformer.layers.0.attention.to_q"


def pair(down: Tensor, alpha: Tensor | None = None) -> dict[str, Tensor]:
    made = {f"{MODULE}.lora_A.weight": down, f"{MODULE}.lora_B.weight": torch.ones(64, len(down))}
    return made if alpha is None else made | {f"{MODULE}.alpha": alpha}


WRONG: dict[str, tuple[dict[str, Tensor], str]] = {
    "half a pair": (
        {f"{MODULE}.lora_A.weight": torch.ones(4, 64)},
        rf"'{MODULE}.lora_A.weight' but not the up",
    ),
    "alpha alone": ({f"{MODULE}.alpha": torch.ones(())}, rf"'{MODULE}.alpha' but not the down"),
    "two ranks": (
        {f"{MODULE}.lora_A.weight": torch.ones(4, 64), f"{MODULE}.lora_B.weight": torch.ones(64, 8)},
        r"to_q.lora_A.weight' of \[4, 64\] and .*to_q.lora_B.weight' of \[64, 8\], which share no rank of 1",
    ),
    "convolution": (
        pair(torch.ones(4, 64, 3, 3)),
        r"of \[4, 64, 3, 3\] and .* which share no rank .* or of a 1x1 convolution",
    ),
    "another width": (
        pair(torch.ones(4, 96)),
        r"update of \[64, 96\] in .*to_q.lora_B.weight.* is \[64, 64\]: .* made for another model",
    ),
    "another family": (
        {
            "transformer_blocks.0.attn.add_q_proj.lora_A.weight": torch.ones(4, 64),
            "transformer_blocks.0.attn.add_q_proj.lora_B.weight": torch.ones(64, 4),
        },
        r"has 'transformer_blocks.0.attn.add_q_proj.lora_B.weight', but .* has no .* another family",
    ),
    "magnitudes": (
        {f"{MODULE}.lora_magnitude_vector": torch.ones(64)},
        rf"'{MODULE}.lora_magnitude_vector', which belongs to no plain LoRA",
    ),
    "bias": ({f"{MODULE}.bias": torch.ones(64)}, rf"'{MODULE}.bias', which belongs to no plain LoRA"),
    "a text encoder": (
        {
            "text_encoder.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 48),
            "text_encoder.layers.0.self_attn.q_proj.lora_B.weight": torch.ones(48, 4),
        },
        "this transformer has no 'text_encoder.layers.0.self_attn.q_proj.weight'",
    ),
    "nothing": ({}, "holds no LoRA"),
    "rank 0": (pair(torch.ones(0, 64)), r"A.weight' of \[0, 64\] and .*, which share no rank of 1 or more"),
    "integers": (pair(torch.ones(4, 64).char()), rf"'{MODULE}.lora_A.weight' as I8: it must be F32"),
    "NaN": (pair(torch.full((4, 64), math.nan).bfloat16()), rf"NaN in '{MODULE}.lora_A.weight'"),
    "two alphas": (pair(torch.ones(4, 64), torch.ones(2)), rf"'{MODULE}.alpha' of \[2\]: .* be one number"),
    "infinite": (pair(torch.ones(4, 64), torch.tensor(math.inf)), rf"infinite .* in '{MODULE}.alpha'"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_named_by_its_key(tiny: Path, tmp_path: Path, kind: str) -> None:
    tensors, said = WRONG[kind]
    path = tmp_path / "wrong.safetensors"
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=said) as caught:
        load(tiny, str(path))
    assert str(path) in str(caught.value)
    served = load(tiny)
    with pytest.raises(InvalidRequestError, match=said):
        served.load_adapter("wrong", str(path))
    assert list(served.adapters) == []


def test_files_that_are_no_adapters_are_refused(tiny: Path, tmp_path: Path, pairs: Pairs) -> None:
    (tmp_path / "adapter.bin").write_bytes(b"\x80\x04.")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 9)
    (tmp_path / "empty").mkdir()
    damaged = peft(tmp_path / "damaged", pairs)
    (damaged / "adapter_config.json").write_text("{")
    dora = peft(tmp_path / "dora", pairs)
    (dora / "adapter_config.json").write_text('{"use_dora": true}')
    endless = peft(tmp_path / "endless", pairs)
    (endless / "adapter_config.json").write_text('{"lora_alpha": NaN}')
    header = diffusers(tmp_path / "header", pairs)
    save_file(load_file(header), header, metadata={"lora_adapter_metadata": "{"})
    for source, said in {
        "adapter.bin": "does not end in .safetensors: nothing else is read",
        "cut.safetensors": "is truncated or not a safetensors file",
        "empty": "holds 0 safetensors files",
        "damaged": "adapter_config.json' is not readable JSON",
        "dora": r"is a DoRA \(use_dora\), which cannot be read",
        "endless": "adapter_config.json' has alphas that cannot be read: nan is not finite",
        "header": "unreadable lora_adapter_metadata",
        "nowhere": "There is no adapter '.*nowhere'",
    }.items():
        with pytest.raises(CheckpointError, match=said):
            load(tiny, str(tmp_path / source))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a=/b/c", ("a", "/b/c", 1.0)),
        ("/b/c:0.8", (None, "/b/c", 0.8)),
        ("a-1.x=org/name/file.safetensors@main:-1", ("a-1.x", "org/name/file.safetensors@main", -1.0)),
        ("C:/x", (None, "C:/x", 1.0)),
        ("/b=c", (None, "/b=c", 1.0)),
    ],
)
def test_sources_are_taken_apart(text: str, parts: tuple[str | None, str, float]) -> None:
    assert AdapterSource.parse(text) == parts


def test_what_is_no_source_is_quoted() -> None:
    with pytest.raises(ValueError, match=r"adapter '' is not of the form name=path\[:scale\]"):
        EngineConfig(adapters=("",))
    with pytest.raises(ValueError, match="adapters a, a name one twice"):
        EngineConfig(adapters=("a=x", "a=y"))
