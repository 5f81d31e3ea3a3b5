"""The chart as helm renders it. `make golden` runs this file, which writes what the tests keep."""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "deploy/helm/twinshot"
GOLDEN = ROOT / "tests/deploy/golden"
BOARD = CHART / "dashboards/twinshot.json"
ALERTS = ROOT / "deploy/prometheus/alerts.yaml"

Object = dict[str, Any]

VALUES = {
    "default": [],
    "cpu": [CHART / "values-cpu.yaml"],
    "h100": [CHART / "values-h100.yaml"],
    "l4-fp8": [CHART / "values-l4-fp8.yaml"],
    "keda": [ROOT / "tests/deploy/values/keda.yaml"],
    "hpa": [ROOT / "tests/deploy/values/hpa.yaml"],
}
"""Everything that is rendered and kept: the chart's own files, and two that set what those leave out."""


def program(name: str) -> str:
    """Where a tool is: beside this Python or in PATH. Skips the test without it; with CI set, fails it."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not here: make tools brings it")
    return found


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm to its end, without a cluster and without settings of the user's."""
    environment = {"PATH": os.environ.get("PATH", ""), "HOME": "/nonexistent", "KUBECONFIG": "/nonexistent"}
    return subprocess.run(
        [program("helm"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def template(
    *files: Path, values: Object | None = None, release: str = "pictures"
) -> subprocess.CompletedProcess[str]:
    """`helm template` with these values files, and `values` above them."""
    command = ["template", release, str(CHART), "--namespace", "toys", "--kube-version", "1.30.0"]
    for file in files:
        command += ["--values", str(file)]
    for name, value in (values or {}).items():
        command += ["--set-json", f"{name}={json.dumps(value)}"]
    return helm(*command)


def render(*files: Path, values: Object | None = None, release: str = "pictures") -> list[Object]:
    """The objects that helm would install."""
    done = template(*files, values=values, release=release)
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


@functools.cache
def rendered(name: str) -> list[Object]:
    """The objects of one of VALUES."""
    return render(*VALUES[name])


def one(objects: list[Object], kind: str, part: str | None = None) -> Object:
    """The only object of its kind, or of its kind and component."""
    label = "app.kubernetes.io/component"
    found = [
        each
        for each in objects
        if each["kind"] == kind and part in {None, each["metadata"].get("labels", {}).get(label)}
    ]
    assert len(found) == 1, f"{len(found)} of {kind}"
    return found[0]


def server(objects: list[Object]) -> Object:
    """The container that serves."""
    containers: list[Object] = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return containers[0]


def pod_environment(**values: object) -> dict[str, str]:
    """What the chart sets for the miniature on a CPU, but on loopback and on a free port."""
    container = server(render(CHART / "values-cpu.yaml", values=values))
    here = {"TWINSHOT_HOST": "127.0.0.1", "TWINSHOT_PORT": "0"}
    return {each["name"]: each["value"] for each in container["env"]} | here


def clean_environment() -> dict[str, str]:
    """This process's, without settings of twinshot's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TWINSHOT_")}


def golden_text(name: str) -> str:
    """What is kept of a render: every object; of the board only that it is there."""
    objects = copy.deepcopy(rendered(name))
    for found in objects:
        if BOARD.name in found.get("data", {}):
            found["data"][BOARD.name] = "the board"
    return yaml.safe_dump_all(objects, sort_keys=False, width=200)


def alerts_text() -> str:
    """The alerts with their thresholds as the chart comes, in the form of Prometheus' own files."""
    rules = one(render(values={"prometheusRule.enabled": True}), "PrometheusRule")["spec"]
    return "# Written by make golden, from the chart.\n" + yaml.safe_dump(rules, sort_keys=False, width=200)


def main() -> None:
    """Write the golden files and the alerts."""
    for name in VALUES:
        (GOLDEN / f"{name}.yaml").write_text(golden_text(name), encoding="utf-8")
    ALERTS.write_text(alerts_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
