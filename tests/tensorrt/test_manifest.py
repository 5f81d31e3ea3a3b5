"""Manifests: written whole, read back equal, and refused once anybody touched them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from twinshot_engine.errors import EngineFilesError
from twinshot_engine.tensorrt.disk import hash_file
from twinshot_engine.tensorrt.manifest import (
    FILE,
    EngineFacts,
    Manifest,
    TensorFacts,
    read_manifest,
    verify_engine,
)

ENGINE = EngineFacts(
    file="decoder-256x256.engine",
    stage="decoder",
    size=(256, 256),
    bytes=5,
    sha256="2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",  # of b"hello"
    inputs=(TensorFacts("latents", "float32", (-1, 8, 32, 32), (((1, 8, 32, 32),) * 3,)),),
    outputs=(TensorFacts("images", "uint8", (-1, 256, 256, 3)),),
    onnx_error=1e-6,
    precision_error=None,
    export_seconds=1.5,
    build_seconds=2.5,
)
MANIFEST = Manifest(
    checkpoint="builtin",
    fingerprint="ab" * 32,
    family="ZImagePipeline",
    precision="bf16",
    targets=("sm_89",),
    library="tensorrt_rtx",
    library_version="1.7.1.116",
    sizes=((256, 256),),
    batch_sizes=(1, 2),
    tokens=(32, 64),
    versions={"torch": "2.11.0"},
    engines=(ENGINE,),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    MANIFEST.write(tmp_path)
    (tmp_path / ENGINE.file).write_bytes(b"hello")
    return tmp_path


def test_what_is_written_is_read(folder: Path) -> None:
    read = read_manifest(folder)
    assert replace(read, checksum="") == MANIFEST
    assert len(read.checksum) == 64
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_engines_are_found_by_stage_and_size() -> None:
    assert MANIFEST.engine("decoder", (256, 256)) == ENGINE
    with pytest.raises(EngineFilesError, match="for the decoder of 512x512: sizes 256x256 were"):
        MANIFEST.engine("decoder", (512, 512))
    with pytest.raises(EngineFilesError, match="No engine was built for the text: sizes"):
        MANIFEST.engine("text")


def test_an_engine_is_read_if_it_is_the_one(folder: Path) -> None:
    assert verify_engine(folder, ENGINE) == b"hello"
    assert hash_file(folder / ENGINE.file) == ENGINE.sha256


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(precision="fp32"),
        lambda m: m.update(targets=["sm_120"]),
        lambda m: m.update(fingerprint="00" * 32),
        lambda m: m["engines"][0].update(sha256="00" * 32),
        lambda m: m["engines"][0]["inputs"][0]["profiles"][0][2].__setitem__(0, 64),
        lambda m: m.update(checksum="00" * 32),
        lambda m: m.update(checksum=""),
    ],
)
def test_any_change_is_noticed(folder: Path, change: Change) -> None:
    content = json.loads((folder / FILE).read_text())
    change(content)
    (folder / FILE).write_text(json.dumps(content))
    with pytest.raises(EngineFilesError, match="was changed after it was written: build again"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.pop("targets"), "is damaged at 'targets'"),
        (lambda m: m.update(engines="none"), "is damaged at 'engines'"),
        (lambda m: m["engines"][0].update(bytes="many"), "is damaged at 'engines.0.bytes'"),
        (lambda m: m.update(format=2), "has format 2, not 1"),
    ],
)
def test_what_cannot_be_a_manifest_is_refused(folder: Path, change: Change, sentence: str) -> None:
    content = json.loads((folder / FILE).read_text())
    change(content)
    (folder / FILE).write_text(json.dumps(content))
    with pytest.raises(EngineFilesError, match=sentence):
        read_manifest(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"null"])
def test_what_is_no_manifest_is_refused(folder: Path, content: bytes) -> None:
    (folder / FILE).write_bytes(content)
    with pytest.raises(EngineFilesError, match=r"manifest\.json' (is not readable JSON|is damaged at)"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", ".."])
def test_an_engine_outside_of_the_folder_is_never_read(folder: Path, name: str) -> None:
    with pytest.raises(EngineFilesError, match="which is not a file in its folder"):
        verify_engine(folder, replace(ENGINE, file=name))
