"""The alerts: checked and played through by promtool, and about metrics and labels that the server has."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import ALERTS, ROOT, one, program, render, rendered
from promql import SCRAPED, groupings, selectors, series

from twinshot_server.metrics import _OUTCOMES

CASES = Path(__file__).parent / "alerts.test.yaml"
RUNBOOK = ROOT / "docs/RUNBOOK.md"
RULES: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"][0]["rules"]
EVERY = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])


def promtool(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [program("promtool"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_promtool_has_no_complaint(tmp_path: Path) -> None:
    done = promtool("check", "rules", str(ALERTS), folder=tmp_path)
    assert (done.returncode, "5 rules found" in done.stdout) == (0, True), done.stdout + done.stderr


def test_each_alert_fires_when_it_should_and_not_before(tmp_path: Path) -> None:
    for file in (ALERTS, CASES):
        shutil.copy(file, tmp_path)
    done = promtool("test", "rules", CASES.name, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_rule_that_never_fires_would_be_noticed(tmp_path: Path) -> None:
    shutil.copy(CASES, tmp_path)
    for rule in RULES:
        text = ALERTS.read_text("utf-8")
        broken = yaml.safe_load(text)
        next(each for each in broken["groups"][0]["rules"] if each["alert"] == rule["alert"])["expr"] = (
            "vector(1) > 2"
        )
        (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(broken), "utf-8")
        assert promtool("test", "rules", CASES.name, folder=tmp_path).returncode != 0, rule["alert"]


def test_each_alert_has_cases_where_it_fires_and_where_it_does_not() -> None:
    expected: dict[str, set[bool]] = {rule["alert"]: set() for rule in RULES}
    for group in yaml.safe_load(CASES.read_text("utf-8"))["tests"]:
        for case in group["alert_rule_test"]:
            expected[case["alertname"]].add(bool(case["exp_alerts"]))
    assert set(map(frozenset, expected.values())) == {frozenset({True, False})}
    assert len(RULES) == 5


@EVERY
def test_an_alert_asks_for_what_the_server_has(rule: dict[str, Any]) -> None:
    known = series()
    for name, matchers in selectors(rule["expr"]):
        assert name in known, name
        for label, values in matchers:
            assert label in known[name] | SCRAPED
            if label == "outcome":
                assert set(values) <= {*_OUTCOMES.values(), "ok", "invalid", "error"}
    assert groupings(rule["expr"]) <= SCRAPED | set().union(
        *(known[name] for name, _ in selectors(rule["expr"]))
    )


@EVERY
def test_an_alert_has_its_section_in_the_runbook(rule: dict[str, Any]) -> None:
    address, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert ROOT / address == RUNBOOK
    headings = re.findall(r"^## (\w+)$", RUNBOOK.read_text("utf-8"), re.MULTILINE)
    assert anchor in {heading.lower() for heading in headings}
    assert rule["alert"] in headings
    assert rule["labels"]["severity"] in {"critical", "warning"}


def test_thresholds_are_values() -> None:
    values = {"latencySeconds": 0.5, "errorRatio": 0.125, "refusedRatio": 0.375, "engineRestarts": 7}
    given = {"prometheusRule.enabled": True} | {
        f"prometheusRule.{name}": value for name, value in values.items()
    }
    rules = one(render(values=given), "PrometheusRule")["spec"]["groups"][0]["rules"]
    assert {rule["expr"].split(">")[-1].strip() for rule in rules if ">" in rule["expr"]} == {
        "0.5",
        "0.125",
        "0.375",
        "7",
    }


def test_the_rules_of_the_operator_are_those_of_compose_but_for_what_was_set() -> None:
    rules = one(rendered("keda"), "PrometheusRule")["spec"]["groups"][0]["rules"]
    assert [rule["alert"] for rule in rules] == [rule["alert"] for rule in RULES]
    assert rules[0]["expr"] == RULES[0]["expr"].replace("> 2.5", "> 0.25")
    assert all(
        rule["annotations"]["runbook_url"].startswith("https://wiki.example/runbook#") for rule in rules
    )
