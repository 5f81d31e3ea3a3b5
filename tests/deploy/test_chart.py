"""The chart is sound: lint, schemas of Kubernetes and of the operators, golden renders, explained values."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from charts import (
    ALERTS,
    BOARD,
    CHART,
    GOLDEN,
    ROOT,
    VALUES,
    alerts_text,
    golden_text,
    helm,
    one,
    program,
    rendered,
)

SCHEMAS = Path(__file__).parent / "schemas"
KUBERNETES = ("1.30", "1.37")
"""The oldest that the chart accepts, and the newest whose schemas there are."""


def closed(schema: Any) -> Any:
    """The schema with unknown fields refused wherever fields are listed: the API server drops them."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(part) for name, part in schema.items()}
    free = {"additionalProperties", "x-kubernetes-preserve-unknown-fields"} & schema.keys()
    return inner if free or "properties" not in schema else inner | {"additionalProperties": False}


def custom_schema(kind: str) -> Any:
    schema = closed(json.loads((SCHEMAS / f"{kind}.json").read_text("utf-8")))
    schema["properties"]["metadata"] = {"type": "object", "required": ["name", "labels"]}
    return schema


CUSTOM = {path.stem for path in SCHEMAS.glob("*.json")}


@pytest.mark.parametrize("name", VALUES)
def test_lint_has_no_complaint(name: str) -> None:
    files = [part for file in VALUES[name] for part in ("--values", str(file))]
    done = helm("lint", "--strict", str(CHART), *files)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", VALUES)
def test_objects_satisfy_kubernetes(name: str, version: str) -> None:
    for found in rendered(name):
        if found["kind"] not in CUSTOM:
            kubernetes_validate.validate(found, version, strict=True)


@pytest.mark.parametrize("name", VALUES)
def test_custom_resources_satisfy_their_operators(name: str) -> None:
    for found in rendered(name):
        if found["kind"] in CUSTOM:
            jsonschema.Draft7Validator(custom_schema(found["kind"])).validate(found)


def test_every_custom_resource_is_rendered_somewhere() -> None:
    kinds = {found["kind"] for name in VALUES for found in rendered(name)}
    assert kinds >= CUSTOM | {"HorizontalPodAutoscaler", "Ingress", "Job", "PersistentVolumeClaim"}


@pytest.mark.parametrize("kind", sorted(CUSTOM))
def test_the_schemas_of_custom_resources_refuse_what_is_wrong(kind: str) -> None:
    found = one(rendered("keda"), kind)
    for wrong in (found | {"spec": found["spec"] | {"nonsense": 1}}, found | {"spec": 3}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft7Validator(custom_schema(kind)).validate(wrong)


@pytest.mark.parametrize("name", VALUES)
def test_renders_are_the_golden_ones(name: str) -> None:
    assert golden_text(name) == (GOLDEN / f"{name}.yaml").read_text("utf-8"), (
        "run make golden, and look at the change"
    )


def test_the_alerts_of_compose_are_the_charts() -> None:
    assert ALERTS.read_text("utf-8") == alerts_text(), "run make golden"


def test_the_board_is_handed_over_whole() -> None:
    handed = one(rendered("keda"), "ConfigMap", "server")["data"]["twinshot.json"]
    assert json.loads(handed) == json.loads(BOARD.read_text("utf-8"))


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_without_its_tools_a_test_skips_itself_and_in_ci_fails(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no-such-tool is not here: make tools brings it"):
        program("no-such-tool")


def test_versions_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]


def test_the_packaged_chart_renders_the_same(tmp_path: Path) -> None:
    assert helm("package", str(CHART), "--destination", str(tmp_path)).returncode == 0
    (packed,) = tmp_path.glob("twinshot-*.tgz")
    values = str(VALUES["keda"][0])
    both = [helm("template", "pictures", str(chart), "--values", values) for chart in (CHART, packed)]
    assert both[0].returncode == 0
    assert both[0].stdout == both[1].stdout


def test_nothing_is_rendered_for_an_older_kubernetes() -> None:
    done = helm("template", "pictures", str(CHART), "--kube-version", "1.29.0")
    assert done.returncode != 0
    assert ">=1.30.0-0" in done.stderr


def paths(values: Any, before: str = "") -> list[str]:
    """Every value's dotted path; a map without fixed names counts as one value."""
    found = []
    for name, value in values.items():
        path = f"{before}{name}"
        if isinstance(value, dict) and value and path not in FREE:
            found += paths(value, f"{path}.")
        else:
            found.append(path)
    return found


FREE = {
    *("podSecurityContext", "securityContext", "topologySpread", "grafanaDashboard.labels"),
    *("resources", "cache.prePull.resources"),
}


def test_every_value_is_explained() -> None:
    text = (CHART / "values.yaml").read_text("utf-8")

    def explained(path: str) -> bool:
        name = re.escape(path.rpartition(".")[2])
        comment = rf"^ *# {re.escape(path)}\b.*\n(?: *#.*\n)*"
        return re.search(rf"{comment} *{name}:", text, re.MULTILINE) is not None

    assert [path for path in paths(yaml.safe_load(text)) if not explained(path)] == []


def test_every_value_has_a_schema_that_knows_no_others() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    for path in paths(yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))):
        node = schema
        for name in path.split("."):
            assert node.get("additionalProperties") is False, f"{path}: other names are accepted beside it"
            node = node["properties"][name]
