"""Every variable, path and port of the chart exists in the product, and what pods run does what it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from charts import CHART, VALUES, Object, clean_environment, one, pod_environment, rendered, server

from twinshot_server.app import create_app
from twinshot_server.settings import DEFAULTS, Settings

SECRETS = {"api_keys"}
"""A setting that only comes from a keys file in the chart."""
NOT_OFFERED = {"replica", "engine", "engines", "fallback"}
"""Settings that a pod has no use for: the server's own, one for tests, TensorRT's, which is in no image."""


def environment(name: str) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in server(rendered(name))["env"]}


@pytest.mark.parametrize("name", VALUES)
def test_every_variable_is_a_setting_that_the_server_accepts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {name: value for name, value in environment(name).items() if name.startswith("TWINSHOT_")}
    fields = {f"TWINSHOT_{field.upper()}" for field in Settings.model_fields}
    assert given.keys() <= fields
    for variable, value in given.items():
        monkeypatch.setenv(variable, value or "a-secret-from-elsewhere")
    Settings()


def test_every_setting_can_be_set_by_a_value() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    offered = {snake(name) for section in ("model", "server") for name in values[section]}
    by_others = {"device", "replicas", "port", "api_keys_file", "admin_key"}
    by_others |= {"base", "adapter"}  # paths in a volume of the user's own, so extraEnv names them
    assert offered | by_others | NOT_OFFERED | SECRETS == set(Settings.model_fields)


def snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def test_values_mean_what_the_server_means_by_default() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    different = {
        name
        for section in ("model", "server")
        for name, value in values[section].items()
        if value != getattr(DEFAULTS, snake(name))
    }
    assert different == {"host", "deadlineMs"}, "a pod is reached from outside, and ends sooner"


def test_choices_are_those_of_the_server() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))["properties"]
    for section in ("model", "server"):
        for name, about in schema[section]["properties"].items():
            choices = get_args(Settings.model_fields[snake(name)].annotation)
            if "enum" in about or any(isinstance(choice, str) for choice in choices):
                assert set(about["enum"]) == set(choices), name


def test_numbers_arrive_as_they_were_written() -> None:
    given = environment("keda")
    assert given["TWINSHOT_MAX_BODY_BYTES"] == "2000000"
    assert given["TWINSHOT_BODY_SECONDS"] == "2.5"
    assert given["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector.tracing:4318"


def test_probes_ask_for_paths_and_a_port_that_there_are() -> None:
    container = server(rendered("default"))
    assert container["ports"] == [{"name": "http", "containerPort": 8000}]
    assert environment("default")["TWINSHOT_PORT"] == "8000"
    served = create_app(DEFAULTS).openapi()["paths"]
    for probe in ("startup", "readiness", "liveness"):
        assert container[f"{probe}Probe"]["httpGet"]["path"] in served
    assert one(rendered("keda"), "ServiceMonitor")["spec"]["endpoints"][0]["path"] in served


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_server_with_a_pods_environment_passes_its_probes(pod: str) -> None:
    for probe in ("startup", "readiness", "liveness"):
        path = server(rendered("cpu"))[f"{probe}Probe"]["httpGet"]["path"]
        assert status(f"{pod}{path}") == 200


def run_as(container: Object, arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a container's command with this Python, in place of the image's."""
    assert container["command"] == ["python", "-c"]
    code = container["args"][0]
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env=clean_environment() | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_test_pod_draws_with_a_key(pod: str, key: str) -> None:
    draw = one(rendered("keda"), "Pod")["spec"]["containers"][0]
    assert draw["env"][0]["valueFrom"] == {"secretKeyRef": {"name": "api-keys", "key": "test"}}
    assert draw["args"][1:] == ["http://easel:8080", "yes"]
    done = run_as(draw, [pod, "yes"], API_KEY=key)
    assert (done.returncode, done.stdout.startswith("a PNG of ")) == (0, True), done.stderr


@pytest.mark.parametrize(
    ("asks", "key", "code", "told"),
    [
        ("yes", "", 0, "it asks for a key, as it should"),
        ("yes", "a-wrong-key", 1, "answered 401"),
        ("no", "", 1, "answered 401"),
    ],
)
def test_the_test_pod_tells_whether_keys_are_asked_for(
    pod: str, asks: str, key: str, code: int, told: str
) -> None:
    draw = one(rendered("default"), "Pod")["spec"]["containers"][0]
    assert "env" not in draw
    assert draw["args"][2] == "no"
    done = run_as(draw, [pod, asks], **({"API_KEY": key} if key else {}))
    assert done.returncode == code
    assert told in done.stdout + done.stderr


def test_the_job_leaves_its_mark_once_the_checkpoint_is_there(tmp_path: Path) -> None:
    pull = one(rendered("h100"), "Job")["spec"]["template"]["spec"]["containers"][0]
    assert pull["args"][1] == "inclusionAI/TwinFlow-Z-Image-Turbo/TwinFlow-Z-Image-Turbo-exp"
    mark = tmp_path / "pulled/0123"
    refused = run_as(pull, ["org/nothing", str(mark)], HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert refused.returncode != 0
    assert not mark.exists()
    done = run_as(pull, ["builtin", str(mark)])
    assert done.returncode == 0, done.stderr
    assert mark.exists()


def test_a_pod_waits_until_that_mark_is_there(tmp_path: Path) -> None:
    waiting = one(rendered("h100"), "Deployment")["spec"]["template"]["spec"]["initContainers"][0]
    assert waiting["command"] == ["python", "-c"]
    mark = tmp_path / "mark"
    command = [sys.executable, "-c", waiting["args"][0], str(mark)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ)) as process:
        assert process.stdout
        assert process.stdout.readline().startswith(b"waiting")
        time.sleep(0.2)
        assert process.poll() is None
        mark.touch()
        assert process.wait(20) == 0


def test_two_gpus_are_two_replicas_of_one_server() -> None:
    assert pod_environment(**{"gpu.count": 2})["TWINSHOT_REPLICAS"] == "2"
