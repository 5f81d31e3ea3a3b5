"""Hub ids: which files are asked for, and what a repository without an index of its own stands for."""

import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest

from twinshot_engine import hub
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.errors import CheckpointError
from twinshot_engine.opening import find_checkpoint

Publish = Callable[[str, str], Path]
STORED = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A Hub of the folders in `remote`, whose matching files appear in `cache`; the files that were sent."""
    sent: list[str] = []

    def download(
        name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        remote, snapshot = tmp_path / "remote" / name, tmp_path / "cache" / name / "snapshots" / "c0ffee"
        snapshot.mkdir(parents=True, exist_ok=True)
        for file in (path for path in remote.rglob("*") if path.is_file()):
            path = file.relative_to(remote).as_posix()
            wanted = any(fnmatch(path, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch(path, pattern) for pattern in ignore_patterns):
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
