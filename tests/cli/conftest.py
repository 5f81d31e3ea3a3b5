"""The command line in this process with a fake engine, and as the program that users start."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from twinshot_server import one_shot, report

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TWINSHOT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def runner(fake_engine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    """Runs commands in an empty folder; they find the fake engine whatever checkpoint they ask for."""
    for module in (one_shot, report):
        monkeypatch.setattr(module, "load_engine", lambda _settings, _progress: fake_engine)
    monkeypatch.chdir(tmp_path)
    return CliRunner()


@pytest.fixture(scope="session")
def program() -> str:
    """The installed `twinshot`."""
    return shutil.which("twinshot", path=str(Path(sys.executable).parent)) or "twinshot"


@pytest.fixture
def run(program: str, tmp_path: Path) -> Run:
    """Run the installed program in an empty folder to its end."""

    def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return start
