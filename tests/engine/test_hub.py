"""Hub ids: which files are asked for, and what a repository without an index of its own stands for."""

import json
import shutil
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from twinshot_engine import hub
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.errors import CheckpointError
from twinshot_engine.opening import find_checkpoint
from twinshot_engine.types import GenerateRequest

Publish = Callable[[str, str], Path]
STORED = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A Hub of the folders in `remote`, whose matching files appear in `cache`; the files that were sent."""
    sent: list[str] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        remote, snapshot = tmp_path / "remote" / name, tmp_path / "cache" / name / "snapshots" / "c0ffee"
        snapshot.mkdir(parents=True, exist_ok=True)
        for file in (path for path in remote.rglob("*") if path.is_file()):
            path = file.relative_to(remote).as_posix()
            if any(fnmatch(path, pattern) for pattern in allow_patterns):
                sent.append(path)
                (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, snapshot / path)
        return str(snapshot)

    monkeypatch.setattr(hub, "snapshot_download", download)
    return sent


@pytest.fixture
def publish(tiny: Path, tmp_path: Path) -> Publish:
    """Put the tiny checkpoint into a repository's folder."""

    def put(repository: str, folder: str) -> Path:
        return Path(shutil.copytree(tiny, tmp_path / "remote" / repository / folder))

    return put


def test_a_repository_whose_checkpoint_lies_deeper_stands_for_it(
    publish: Publish, downloads: list[str]
) -> None:
    publish("inclusionAI/TwinFlow", "TwinFlow-v1.0/TwinFlow")
    found = find_checkpoint("inclusionAI/TwinFlow@main")
    assert found.reference == "inclusionAI/TwinFlow/TwinFlow-v1.0/TwinFlow@main"
    assert (found.family, found.revision, found.name) == ("ZImagePipeline", "c0ffee", "TwinFlow")
    assert f"TwinFlow-v1.0/TwinFlow/{STORED}" in downloads


def test_one_of_several_must_be_named(publish: Publish, downloads: list[str]) -> None:
    publish("org/many", "first")
    publish("org/many", "second/inner")
    with pytest.raises(
        CheckpointError, match=r"several checkpoints: name one of 'org/many/first@v2', 'org/many/s"
    ):
        find_checkpoint("org/many@v2")
    assert not any(path.endswith("safetensors") for path in downloads)
    assert find_checkpoint("org/many/second").reference == "org/many/second/inner"


def test_a_file_is_fetched_alone_and_a_base_without_its_transformer(
    publish: Publish, downloads: list[str], tmp_path: Path
) -> None:
    folder = publish("org/whole", ".")
    (tmp_path / "remote/org/files").mkdir(parents=True)
    shutil.copy(folder / STORED, tmp_path / "remote/org/files/turbo.safetensors")
    shutil.copy(folder / STORED, tmp_path / "remote/org/files/other.safetensors")
    engine = Engine.load(EngineConfig("org/files/turbo.safetensors@main", base="org/whole", device="cpu"))
    assert (engine.info.name, engine.info.revision) == ("turbo", "c0ffee")
    assert "other.safetensors" not in downloads
    assert STORED not in downloads
    assert "transformer/config.json" in downloads


def test_what_is_not_there_is_named(publish: Publish, downloads: list[str], tmp_path: Path) -> None:
    publish("org/whole", ".")
    with pytest.raises(CheckpointError, match=r"'org/whole' has no file 'turbo.gguf'"):
        find_checkpoint("org/whole/turbo.gguf")
    (tmp_path / "remote/org/empty").mkdir()
    said = r"'org/empty' has no model_index.json: .* name its file, such as 'org/empty/file.safetensors'"
    with pytest.raises(CheckpointError, match=said):
        find_checkpoint("org/empty")


READ = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{part}/config.json" for part in ("text_encoder", "transformer", "vae")),
    *(f"tokenizer/{name}" for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")),
}
"""What is read of the tiny checkpoint beside its weights."""

WEIGHTS = {"text_encoder/model.safetensors", STORED, "vae/diffusion_pytorch_model.safetensors"}

UNREAD = (
    "README.md",
    "demo.jpg",
    "sd3.5_medium.safetensors",
    "text_encoders/t5xxl_fp16.safetensors",
    "text_encoders/clip_g.safetensors",
    "text_encoders/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.bf16-00001-of-00002.safetensors",
    "text_encoder/pytorch_model.bin",
    "text_encoder/onnx/model.onnx",
    "transformer/diffusion_pytorch_model.bf16.safetensors",
    "transformer/diffusion_pytorch_model.int4.safetensors",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "vae/old/diffusion_pytorch_model.safetensors",
    "tokenizer/spiece.model",
    "a/b/c.safetensors",
)
"""As published repositories hold beside what is read."""


def shard(folder: Path, stem: str, variant: str = "") -> list[str]:
    """Divide a part's file into two, under the names that diffusers and transformers give them."""
    dotted = f".{variant}" if variant else ""
    weights = load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    files = [f"{stem}{dotted}-0000{number}-of-00002.safetensors" for number in (1, 2)]
    weight_map = {name: files[number % 2] for number, name in enumerate(sorted(weights))}
    for file in files:
        save_file({name: weights[name] for name, where in weight_map.items() if where == file}, folder / file)
    (folder / f"{stem}.safetensors.index{dotted}.json").write_text(json.dumps({"weight_map": weight_map}))
    return files


def add(folder: Path, paths: Iterable[str]) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("{}")


@pytest.mark.parametrize("folder", [".", "deep/er"])
def test_only_what_is_read_is_fetched(publish: Publish, downloads: list[str], folder: str) -> None:
    add(publish("org/published", folder), UNREAD)
    find_checkpoint("org/published" if folder == "." else f"org/published/{folder}")
    prefix = "" if folder == "." else f"{folder}/"
    assert {path.removeprefix(prefix) for path in downloads} == READ | WEIGHTS


def test_of_shards_those_that_the_index_names_are_fetched(publish: Publish, downloads: list[str]) -> None:
    folder = publish("org/sharded", ".")
    files = shard(folder / "transformer", "diffusion_pytorch_model")
    add(folder, ("transformer/diffusion_pytorch_model-00001-of-00003.safetensors", *UNREAD))
    find_checkpoint("org/sharded")
    index = f"{STORED}.index.json"
    assert set(downloads) == READ | WEIGHTS - {STORED} | {index, *(f"transformer/{file}" for file in files)}


@pytest.mark.parametrize("variant", ["bf16", "fp16"])
def test_where_there_is_only_a_variant_it_is_fetched_and_read(
    publish: Publish, downloads: list[str], variant: str
) -> None:
    folder = publish("org/half", ".")
    half = torch.bfloat16 if variant == "bf16" else torch.float16
    for path in WEIGHTS:
        weights = {name: tensor.to(half) for name, tensor in load_file(folder / path).items()}
        save_file(weights, folder / path)
    request = GenerateRequest("a red apple", seed=3)
    plain = Engine.load(EngineConfig(str(folder), device="cpu", precision="fp32")).latents([request])
    shard(folder / "text_encoder", "model", variant)
    for path in WEIGHTS - {"text_encoder/model.safetensors"}:
        (folder / path).rename((folder / path).with_suffix(f".{variant}.safetensors"))
    add(folder, ["transformer/diffusion_pytorch_model.int4.safetensors"])
    if variant == "bf16":
        add(folder, ["vae/diffusion_pytorch_model.fp16.safetensors"])
    for place in (str(folder), "org/half"):
        loaded = Engine.load(EngineConfig(place, device="cpu", precision="fp32"))
        assert torch.equal(loaded.latents([request]), plain)
    weights_sent = {path for path in downloads if path.endswith("safetensors")}
    assert weights_sent == {
        *(f"text_encoder/model.{variant}-0000{number}-of-00002.safetensors" for number in (1, 2)),
        *(f"{part}/diffusion_pytorch_model.{variant}.safetensors" for part in ("transformer", "vae")),
    }


def test_a_plain_file_is_read_before_its_variants(tiny_copy: Path, engine: Engine) -> None:
    add(tiny_copy, ["transformer/diffusion_pytorch_model.bf16.safetensors", "vae/model.fp16.safetensors"])
    request = GenerateRequest("a red apple", seed=3)
    loaded = Engine.load(EngineConfig(str(tiny_copy), device="cpu", precision="fp32"))
    assert torch.equal(loaded.latents([request]), engine.latents([request]))
