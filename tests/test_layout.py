"""The rules of the tree that no other tool checks."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE_ROOTS = ("server", "distill", "engine", "kernels")
MAX_LINES = 400
MAX_TRACKED_MIB = 50


def files_of_the_project() -> list[Path]:
    """Every file that git tracks or would track; the whole tree where there is no git."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return [path for folder in SOURCE_ROOTS for path in (ROOT / folder).rglob("*") if path.is_file()]
    command = [git, "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return [path for name in names if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("folder", SOURCE_ROOTS)
def test_source_roots_are_not_packages(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_kernels_stays_hugging_faces_name() -> None:
    spec = find_spec("kernels")
    installed = Path(sysconfig.get_path("purelib"))
    assert spec is None or (spec.origin is not None and Path(spec.origin).is_relative_to(installed))


def test_no_file_is_too_long() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in files_of_the_project()
        if path.suffix in {".py", ".js", ".sh", ".css", ".html"}
    }
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_the_repository_stays_light() -> None:
    assert sum(path.stat().st_size for path in files_of_the_project()) < MAX_TRACKED_MIB * 2**20
