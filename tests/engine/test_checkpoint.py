"""Checkpoints from elsewhere: found, or refused in one sentence."""

import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from twinshot_engine import hub, opening
from twinshot_engine.config import BUILTIN, EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.errors import CheckpointError
from twinshot_engine.opening import find_checkpoint
from twinshot_engine.types import GenerateRequest
from twinshot_engine.weights import StoredPart

REQUEST = GenerateRequest("a red apple", seed=3)
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
Load = Callable[[Path], Engine]


def edit_json(path: Path, **change: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def truncate(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def pickle_only(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")


def point_elsewhere(folder: Path) -> None:
    index = {"weight_map": {"x_pad_token": "../vae/diffusion_pytorch_model.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def lose_a_shard(folder: Path) -> None:
    (folder / f"{WEIGHTS}.index.json").write_text(
        json.dumps({"weight_map": {"x_pad_token": "part-2.safetensors"}})
    )


def tensor_bytes(folder: Path) -> int:
    return sum(tensor.nbytes for tensor in load_file(folder / WEIGHTS).values())


def index_alone(folder: Path, **metadata: object) -> None:
    """An index of the transformer's one file."""
    weight_map = dict.fromkeys(load_file(folder / WEIGHTS), Path(WEIGHTS).name)
    index = {"metadata": metadata, "weight_map": weight_map}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def drop(name: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda weights: {key: value for key, value in weights.items() if key != name}


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (
        lambda f: (f / "model_index.json").unlink(),
        "model_index.json' is missing: name a folder in diffusers' layout, or a base",
    ),
    "index not json": (
        lambda f: (f / "model_index.json").write_text("{"),
        "model_index.json' is not readable JSON: .*; fetch it again",
    ),
    "index not an object": (
        lambda f: (f / "model_index.json").write_text("[]"),
        "holds a list, not a JSON object: fetch it again",
    ),
    "index deeply nested": (
        lambda f: (f / "model_index.json").write_text("[" * 99_999),
        "is not readable JSON",
    ),
    "index not utf-8": (
        lambda f: (f / "model_index.json").write_bytes(b"\xff\xfe\xfa"),
        "is not readable JSON",
    ),
    "unknown family": (
        lambda f: edit_json(f / "model_index.json", _class_name="FluxPipeline"),
        "is a 'FluxPipeline', which is not supported; supported: .*ZImagePipeline",
    ),
    "no transformer": (
        lambda f: shutil.rmtree(f / "transformer"),
        r"transformer.* is missing: name a base \(--base\) that has this part",
    ),
    "no config": (
        lambda f: (f / "transformer/config.json").unlink(),
        r"config.json' is missing: fetch it again, or remove '.*/transformer' and name a base \(--base\)",
    ),
    "wrong config type": (
        lambda f: edit_json(f / "transformer/config.json", dim="wide"),
        'config.json\' cannot be used: dim "wide" is not a whole number from 0',
    ),
    "absurd number of layers": (
        lambda f: edit_json(f / "transformer/config.json", n_layers=10**6),
        "n_layers 1000000 is not supported: up to 1000",
    ),
    "negative width": (
        lambda f: edit_json(f / "transformer/config.json", dim=-64),
        "config.json' cannot be used: dim -64 is not",
    ),
    "unsupported config": (
        lambda f: edit_json(f / "transformer/config.json", n_kv_heads=1),
        "cannot be used: n_kv_heads 1 must equal n_heads 2",
    ),
    "no weights": (
        lambda f: (f / WEIGHTS).unlink(),
        r"diffusion_pytorch_model.safetensors' is missing: fetch it again, or remove '.*/transformer' and",
    ),
    "no text encoder's weights": (
        lambda f: (f / "text_encoder/model.safetensors").unlink(),
        "text_encoder/model.safetensors' is missing: fetch it again, or remove",
    ),
    "weights of another name": (
        lambda f: (f / WEIGHTS).rename(f / "transformer/turbo.fp8.safetensors"),
        "diffusion_pytorch_model.safetensors' is missing; 'turbo.fp8.safetensors' there has a name that is",
    ),
    "broken link": (
        lambda f: [(f / WEIGHTS).unlink(), (f / WEIGHTS).symlink_to(f / "gone")],
        f"{WEIGHTS}' is a link to a file that is gone: fetch",
    ),
    "pickled weights only": (pickle_only, r"only pickled weights \(diffusion_pytorch_model.bin\)"),
    "truncated weights": (lambda f: truncate(f / WEIGHTS, 0.5), "is truncated or not a safetensors file"),
    "truncated header": (lambda f: truncate(f / WEIGHTS, 0.001), "is truncated or not a safetensors file"),
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), "is truncated or not a safetensors file"),
    "text as weights": (
        lambda f: (f / WEIGHTS).write_text("version https://git-lfs"),
        "not a safetensors file",
    ),
    "huge header": (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 64), "not a safetensors file"),
    "wrong shape": (
        lambda f: edit_json(f / "transformer/config.json", cap_feat_dim=32),
        r"stores 'cap_embedder.0.weight' as \[48\], where its config says \[32\]",
    ),
    "missing parameter": (
        lambda f: edit_weights(f / WEIGHTS, drop("layers.1.attention.to_q.weight")),
        f"{WEIGHTS}' lacks 'layers.1.attention.to_q.weight': fetch it again",
    ),
    "another family's transformer": (
        lambda f: save_file({"pos_embed.proj.weight": torch.ones(1)}, f / WEIGHTS),
        f"{WEIGHTS}' lacks 'all_final_layer.* more, but has 'pos_embed.proj.weight': it is of another model",
    ),
    "half a second embedder": (
        lambda f: edit_weights(f / WEIGHTS, drop("t_embedder_2.mlp.0.bias")),
        "lacks 't_embedder_2.mlp.0.bias'",
    ),
    "unknown parameter": (
        lambda f: edit_weights(f / WEIGHTS, lambda w: w | {"surprise": torch.ones(1)}),
        "has unknown parameters: 'surprise'",
    ),
    "integer parameter": (
        lambda f: edit_weights(
            f / WEIGHTS, lambda w: w | {"x_pad_token": torch.ones(1, 64, dtype=torch.int8)}
        ),
        "stores 'x_pad_token' as I8, not as one of F64, F32, F16, BF16,",
    ),
    "shard outside": (point_elsewhere, "which is not a safetensors file beside it"),
    "lost shard": (lose_a_shard, "part-2.safetensors' is missing, though"),
    "index of a smaller total": (
        lambda f: index_alone(f, total_size=12345),
        r"index.json' says that its tensors take 12345 bytes in all \(total_size\), but .* say \d+:",
    ),
    "index of wider tensors": (
        lambda f: index_alone(f, total_size=2 * tensor_bytes(f)),
        r"bytes in all \(total_size\), but the headers .* say \d+: .* fetch them again",
    ),
    "empty shard index": (
        lambda f: (f / f"{WEIGHTS}.index.json").write_text("{}"),
        "has no weight_map: fetch",
    ),
    "other text encoder": (
        lambda f: edit_json(f / "text_encoder/config.json", model_type="llama"),
        "model_type 'llama' is not supported",
    ),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer' is missing"),
    "damaged tokenizer": (lambda f: (f / "tokenizer/tokenizer.json").write_text("{}"), "no usable .*; fetch"),
    "no tokenizer file": (
        lambda f: (f / "tokenizer/tokenizer.json").unlink(),
        "tokenizer.json' is missing: fetch it again, or remove",
    ),
    "no chat template": (lambda f: (f / "tokenizer/chat_template.jinja").unlink(), "has no chat template"),
    "damaged vae": (lambda f: truncate(f / "vae/diffusion_pytorch_model.safetensors", 0.9), "is truncated"),
    "card with a wrong size": (
        lambda f: (f / "twinshot.json").write_text('{"sizes": [[250, 256]]}'),
        r"lists sizes \[\(250, 256\)\], but the model can draw multiples of 16",
    ),
    "card without sizes": (lambda f: (f / "twinshot.json").write_text('{"sizes": 3}'), "not a list such as"),
    "card with a list": (
        lambda f: (f / "twinshot.json").write_text('{"vocabulary": []}'),
        "vocabulary of type list",
    ),
    "card with near words in a list": (
        lambda f: (f / "twinshot.json").write_text('{"near": ["lion"]}'),
        "'near' that is not an object of texts",
    ),
    "card with near words of numbers": (
        lambda f: (f / "twinshot.json").write_text('{"near": {"lion": 3}}'),
        "'near' that is not an object of texts",
    ),
    "card with one example": (
        lambda f: (f / "twinshot.json").write_text('{"examples": "a cat"}'),
        "'examples' that are not a list of texts",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_checkpoints_are_refused_in_one_sentence(tiny_copy: Path, load: Load, kind: str) -> None:
    damage, message = DAMAGE[kind]
    damage(tiny_copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(tiny_copy)
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert str(tiny_copy) in text


def test_floating_types_may_be_mixed(tiny_copy: Path, load: Load, engine: Engine) -> None:
    """As in published files, whose norms are often wider than their matrices."""
    exact = {
        name: tensor.to(torch.bfloat16).float() for name, tensor in load_file(tiny_copy / WEIGHTS).items()
    }
    save_file(exact, tiny_copy / WEIGHTS)
    expected = load(tiny_copy).latents([REQUEST])
    kinds = (torch.bfloat16, torch.float32, torch.float64)
    edit_weights(
        tiny_copy / WEIGHTS, lambda w: {name: w[name].to(kinds[i % 3]) for i, name in enumerate(sorted(w))}
    )
    assert torch.equal(load(tiny_copy).latents([REQUEST]), expected)


def test_nothing_half_loaded_stays(tiny: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even while somebody keeps the error, whose frames knew the modules."""
    loaded: list[weakref.ref[nn.Module]] = []
    fill, read = StoredPart.fill, StoredPart.read_stored

    def note(part: StoredPart, module: nn.Module, *rest: Any) -> None:
        loaded.append(weakref.ref(module))
        fill(part, module, *rest)

    def break_off(part: StoredPart, *rest: Any) -> Iterator[Any]:
        for count, entry in enumerate(read(part, *rest)):
            if part.folder.name == "vae" and count == 5:
                raise CheckpointError("a disk was unplugged.") from OSError("input/output error")
            yield entry

    monkeypatch.setattr(StoredPart, "fill", note)
    monkeypatch.setattr(StoredPart, "read_stored", break_off)
    with pytest.raises(CheckpointError, match="unplugged") as caught:
        load(tiny)
    assert len(loaded) == 3
    assert [module() for module in loaded] == [None] * 3
    assert caught.value.__traceback__ is not None


def test_parts_must_fit_together(tiny_copy: Path, load: Load) -> None:
    edit_json(tiny_copy / "transformer/config.json", cap_feat_dim=32)
    edit_weights(
        tiny_copy / WEIGHTS,
        lambda w: w | {"cap_embedder.0.weight": torch.ones(32), "cap_embedder.1.weight": torch.ones(64, 32)},
    )
    with pytest.raises(CheckpointError, match="makes 48 channels, but the transformer reads 32"):
        load(tiny_copy)


def test_shards_are_one_set_of_weights(tiny_copy: Path, load: Load, engine: Engine) -> None:
    for part, stem in (("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")):
        whole = tiny_copy / part / f"{stem}.safetensors"
        weights = load_file(whole)
        whole.unlink()
        names = sorted(weights)
        weight_map = {name: f"{stem}-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
        for file in set(weight_map.values()):
            save_file(
                {name: weights[name] for name in names if weight_map[name] == file}, whole.parent / file
            )
        index = whole.with_name(f"{stem}.safetensors.index.json")
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert torch.equal(load(tiny_copy).latents([REQUEST]), engine.latents([REQUEST]))


@pytest.mark.parametrize("twice", [False, True])
def test_an_index_may_count_a_shared_tensor_twice(
    tiny_copy: Path, load: Load, engine: Engine, twice: bool
) -> None:
    largest = max(tensor.nbytes for tensor in load_file(tiny_copy / WEIGHTS).values())
    index_alone(tiny_copy, total_size=float(tensor_bytes(tiny_copy) + twice * largest))
    assert torch.equal(load(tiny_copy).latents([REQUEST]), engine.latents([REQUEST]))


@pytest.mark.parametrize("metadata", [None, [], {"total_size": None}, {"total_size": "many"}])
def test_an_index_needs_no_total(tiny_copy: Path, load: Load, engine: Engine, metadata: object) -> None:
    index_alone(tiny_copy)
    edit_json(tiny_copy / f"{WEIGHTS}.index.json", metadata=metadata)
    assert torch.equal(load(tiny_copy).latents([REQUEST]), engine.latents([REQUEST]))


def test_language_model_heads_and_prefixes_are_accepted(tiny_copy: Path, load: Load, engine: Engine) -> None:
    path = tiny_copy / "text_encoder" / "model.safetensors"
    edit_weights(path, lambda w: {f"model.{k}": v for k, v in w.items()} | {"lm_head.weight": torch.ones(4)})
    assert torch.equal(load(tiny_copy).latents([REQUEST]), engine.latents([REQUEST]))


def test_a_stock_z_image_needs_no_second_embedder(tiny_copy: Path, load: Load, engine: Engine) -> None:
    edit_weights(tiny_copy / WEIGHTS, lambda w: {k: v for k, v in w.items() if "t_embedder_2" not in k})
    stock = load(tiny_copy)
    assert torch.equal(stock.latents([REQUEST]), engine.latents([REQUEST]))
    # At one step the second embedder's share is exactly zero; at two it is not.
    twice = replace(REQUEST, steps=2)
    assert not torch.equal(stock.latents([twice]), engine.latents([twice]))


def test_the_encoder_half_of_the_vae_is_not_needed(tiny_copy: Path, load: Load, engine: Engine) -> None:
    path = tiny_copy / "vae" / "diffusion_pytorch_model.safetensors"
    edit_weights(path, lambda w: {k: v for k, v in w.items() if not k.startswith("encoder.")})
    assert np.array_equal(load(tiny_copy).generate([REQUEST]).images, engine.generate([REQUEST]).images)


@pytest.mark.parametrize("reference", ["nowhere", "/nowhere/at/all", "./a/b", "a/../b", "a b/c", "org/name@"])
def test_unknown_references_are_explained(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"There is no folder or file .* not a Hub id") as caught:
        find_checkpoint(reference)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("reference", "repository", "subfolder", "revision"),
    [
        ("org/name", "org/name", "", None),
        ("org/name@v1", "org/name", "", "v1"),
        ("org/na.me/sub/folder@refs/pr/3", "org/na.me", "sub/folder/", "refs/pr/3"),
    ],
)
def test_hub_ids_are_taken_apart(
    reference: str,
    repository: str,
    subfolder: str,
    revision: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "c0ffee" / subfolder
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    asked: list[tuple[str, str | None, list[str]]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(tmp_path / "c0ffee")

    monkeypatch.setattr(hub, "snapshot_download", download)
    found = find_checkpoint(reference)
    assert {call[:2] for call in asked} == {(repository, revision)}
    patterns = [pattern for call in asked for pattern in call[2]]
    assert all(pattern.startswith(subfolder) for pattern in patterns)
    assert not any(pattern.endswith(("bin", "py", "pt", "*")) for pattern in patterns)
    assert (found.folder, found.revision) == (folder, "c0ffee")


def test_failing_downloads_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("no route\nto host.")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    said = "^'org/name' cannot be fetched from the Hub: no route to host; without a network, name a folder.$"
    with pytest.raises(CheckpointError, match=said):
        find_checkpoint("org/name")


def test_missing_subfolders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(CheckpointError, match="'org/name' has no folder 'sub'"):
        find_checkpoint("org/name/sub")


def test_a_missing_builtin_checkpoint_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "BUILTIN_FOLDER", tmp_path / "absent")
    with pytest.raises(CheckpointError, match="The built-in checkpoint is not part of this installation"):
        Engine.load(EngineConfig(BUILTIN))
