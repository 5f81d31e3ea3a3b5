"""An engine's start: what it reports is timed by stage, and its files are read ahead of torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from twinshot_engine import read_ahead
from twinshot_engine.checkpoint import BUILTIN_FOLDER
from twinshot_server.processes.start_clock import StartClock


def test_stages_are_timed_and_what_warming_reports_is_one_of_them() -> None:
    now = 100.0

    def report(stage: str, after: float) -> None:
        nonlocal now
        now += after
        clock.enter(stage)

    clock = StartClock(lambda: now)
    report("importing", 2.0)
    report("transformer", 3.0)
    report("transformer", 0.5)
    report("ready", 1.0)
    report("transformer 64x32, 32 tokens", 0.25)
    report("ready", 0.25)
    report("measuring costs", 0.5)
    now += 4.0
    assert clock.finish() == {
        "process": 2.0,
        "importing": 3.0,
        "transformer": 1.5,
        "warming": 1.0,
        "measuring costs": 4.0,
    }


def test_metrics_tell_how_long_a_start_took(make_client: Callable[..., TestClient]) -> None:
    text = make_client().get("/metrics").text
    for stage in ("process", "measuring costs"):
        assert f'twinshot_engine_start_seconds{{stage="{stage}"}}' in text


def read(reference: str) -> list[str]:
    """The names of the files that are read ahead, in their order; the reading itself is waited for."""
    for thread in read_ahead.read_ahead(reference):
        thread.join(10)
        assert not thread.is_alive()
    return [path.name for path in read_ahead._files(reference)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the Hub with one repository, which has a pipeline of its own in a folder."""
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    for folder in (snapshot, snapshot / "small"):
        (folder / "vae").mkdir(parents=True)
        (folder / "model_index.json").write_text("{}")
        (folder / "vae" / f"{folder.name}.safetensors").write_bytes(bytes(100))
    refs = tmp_path / "models--org--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_parts_are_read_in_the_order_they_are_loaded_in(tmp_path: Path) -> None:
    for part in ("vae", "transformer", "text_encoder"):
        (tmp_path / part).mkdir()
        for shard in (2, 1):
            (tmp_path / part / f"{part}-{shard}.safetensors").write_bytes(bytes(10))
    assert read(str(tmp_path)) == [
        f"{part}-{shard}.safetensors" for part in ("text_encoder", "transformer", "vae") for shard in (1, 2)
    ]


def test_the_built_in_checkpoint_is_read_where_it_is() -> None:
    assert read_ahead.BUILTIN_FOLDER == BUILTIN_FOLDER
    assert len(read("builtin")) == 3


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("org/name", ["abc.safetensors"]),
        ("org/name@main", ["abc.safetensors"]),
        ("org/name/small", ["small.safetensors"]),
        ("org/other", []),
        ("org/name@v9", []),
        ("random:z-image", []),
        ("no such folder", []),
        ("a//b@@c", []),
    ],
)
def test_a_checkpoint_of_the_hub_is_read_from_its_cache(hub: Path, reference: str, found: list[str]) -> None:
    assert read(reference) == found


def test_a_file_that_cannot_be_read_is_left_to_who_loads_it(tmp_path: Path) -> None:
    (tmp_path / "vae" / "a.safetensors").mkdir(parents=True)
    assert read(str(tmp_path)) == ["a.safetensors"]


def test_what_would_fill_the_memory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "a.safetensors").write_bytes(bytes(1000))
    monkeypatch.setattr(read_ahead, "free_memory", lambda: 1200)
    assert read_ahead.read_ahead(str(tmp_path)) == []
    monkeypatch.setattr(read_ahead, "free_memory", lambda: 1300)
    assert len(read_ahead.read_ahead(str(tmp_path))) == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    3 kB"}, 3072),
        ({"/proc/meminfo": "MemAvailable: 3 kB", "/sys/fs/cgroup/memory.max": "max"}, 3072),
        (
            {
                "/proc/meminfo": "MemAvailable: 3 kB",
                "/sys/fs/cgroup/memory.max": "1500",
                "/sys/fs/cgroup/memory.current": "500",
            },
            1000,
        ),
        ({}, 0),
    ],
)
def test_free_memory_is_the_machines_and_the_containers(
    files: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "_text", lambda path: files.get(path, ""))
    assert read_ahead.free_memory() == expected


def test_reading_ahead_does_not_wait_for_torch() -> None:
    code = "import sys; from twinshot_engine.read_ahead import read_ahead; read_ahead('builtin');"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_this_machine_tells_how_much_memory_is_free() -> None:
    assert not sys.platform.startswith("linux") or read_ahead.free_memory() > 0
