"""A real server, started with the environment that the chart gives to a pod."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from charts import clean_environment, pod_environment

PROGRAMS = Path(sys.executable).parent


@pytest.fixture(scope="session")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that runs as in a pod; it must end within its grace period, with 0."""
    keys = tmp_path_factory.mktemp("etc") / "keys.toml"
    keys.write_text('[tests]\nsecret = "a-secret-of-the-tests"\n', "utf-8")
    environment = clean_environment() | pod_environment(
        **{"server.drainSeconds": 1, "auth.existingSecret": "keys"}
    )
    assert environment["TWINSHOT_API_KEYS_FILE"] == "/etc/twinshot/keys.toml"
    environment["TWINSHOT_API_KEYS_FILE"] = str(keys)
    command = [str(PROGRAMS / "twinshot"), "serve", "--json"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()
            assert process.wait(45) == 0


@pytest.fixture(scope="session")
def key() -> str:
    """The key of that server."""
    return "a-secret-of-the-tests"
