"""A server with the built-in checkpoint for what the documents send to it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import ADMIN_KEY

PROGRAMS = Path(sys.executable).parent


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """This process's, with the programs of its virtual environment and without settings of twinshot's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TWINSHOT_")}
    return kept | {"PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def server(environment: dict[str, str]) -> Iterator[str]:
    """The address of a server on loopback, with the options that the documents rely on."""
    command = ["twinshot", "serve", "--port", "0", "--drain-seconds", "0", "--log-level", "warning"]
    with subprocess.Popen(
        command, env=environment | {"TWINSHOT_ADMIN_KEY": ADMIN_KEY}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()
            process.wait(30)
