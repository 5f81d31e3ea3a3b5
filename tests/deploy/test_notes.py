"""What `helm install` tells afterwards: commands that work as they stand, and what is left to see to."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from charts import CHART, VALUES, helm, one, rendered

CLEAR_TEXT = {
    "ingress.enabled": "true",
    "ingress.host": "pictures.example",
    "auth.existingSecret": "keys",
    "networkPolicy.enabled": "false",
}


def notes(*files: Path, **values: Any) -> str:
    """The notes of an installation that does not take place."""
    command = ["install", "pictures", str(CHART), "--namespace", "toys", "--dry-run=client"]
    for file in files:
        command += ["--values", str(file)]
    for name, value in values.items():
        command += ["--set", f"{name}={value}"]
    done = helm(*command)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:\n")[2]


@pytest.mark.parametrize("name", VALUES)
def test_the_commands_name_what_is_installed(name: str) -> None:
    text, objects = notes(*VALUES[name]), rendered(name)
    assert f"deployment/{one(objects, 'Deployment')['metadata']['name']}\n" in text
    service = one(objects, "Service")
    port = service["spec"]["ports"][0]["port"]
    assert f"service/{service['metadata']['name']} 8000:{port}\n" in text
    assert f"http://{service['metadata']['name']}.toys.svc:{port}\n" in text


def test_the_request_that_is_shown_draws(pod: str, key: str, tmp_path: Path) -> None:
    shown = re.search(r"^ *(curl .*)$", notes(*VALUES["keda"]), re.MULTILINE)
    assert shown
    command = shown[1].replace("http://127.0.0.1:8000", pod)
    subprocess.run(
        ["bash", "-euc", f"{command} --silent --fail"],
        cwd=tmp_path,
        env=os.environ | {"KEY": key},
        check=True,
    )
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        ({}, "Everybody who can reach it may draw"),
        (CLEAR_TEXT, "ingress.tlsSecret is empty"),
        ({"extraEnv.OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, "Spans will not arrive"),
        ({"prometheusRule.enabled": "true"}, 'The alerts go by job="twinshot"'),
    ],
)
def test_what_is_left_to_see_to_is_told(values: dict[str, str], warning: str) -> None:
    assert warning in notes(**values)
    assert warning not in notes(*VALUES["keda"])
