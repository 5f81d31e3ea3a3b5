"""`deploy/ray`: what it configures exists here, fits together, and runs without privileges."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet.cluster import configuration
from twinshot_server.settings import Settings

FOLDER = Path(__file__).parents[2] / "deploy" / "ray"
SERVICE: dict[str, Any] = yaml.safe_load((FOLDER / "rayservice.yaml").read_text())
LOCAL: dict[str, Any] = yaml.safe_load((FOLDER / "local.yaml").read_text())
FLEET: dict[str, Any] = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
CONFIGURATIONS = pytest.mark.parametrize("found", [LOCAL, FLEET], ids=["local", "rayservice"])


def models_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [app for app in found["applications"] if app["import_path"].endswith("cluster.model:build")]


def pods() -> list[dict[str, Any]]:
    cluster = SERVICE["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@CONFIGURATIONS
def test_import_paths_lead_to_builders(found: dict[str, Any]) -> None:
    for app in found["applications"]:
        module, _, name = app["import_path"].partition(":")
        assert list(inspect.signature(getattr(importlib.import_module(module), name)).parameters) == [
            "arguments"
        ]


@CONFIGURATIONS
def test_models_are_configured_by_settings_that_exist(found: dict[str, Any]) -> None:
    assert models_of(found)
    for app in models_of(found):
        Settings(**{name: value for name, value in app["args"].items() if name not in {"gpus", "cpus"}})
        assert {each["name"] for each in app.get("deployments", [])} <= {"Model"}


@CONFIGURATIONS
def test_the_gateway_knows_every_model_by_its_path(found: dict[str, Any]) -> None:
    (gateway,) = (app for app in found["applications"] if app["name"] == "gateway")
    assert gateway["route_prefix"] == "/"
    assert gateway["args"]["models"] == [app["name"] for app in models_of(found)]
    for app in models_of(found):
        assert app["route_prefix"] == f"/{app['name']}"


def test_the_benchmark_changes_port_and_arguments_only() -> None:
    changed = configuration(8000, 2, {})
    (gateway,) = (app for app in changed["applications"] if app["name"] == "gateway")
    assert gateway["args"].pop("address") == "http://127.0.0.1:8000"
    assert changed == LOCAL


def test_the_local_cluster_listens_on_loopback() -> None:
    assert LOCAL["http_options"]["host"] == "127.0.0.1"


def test_pods_run_without_privileges() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"] == container["resources"]["requests"]
            assert not container["image"].endswith(":latest")


def test_drains_end_before_pods_do() -> None:
    for pod in pods():
        environment = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
        assert (
            environment["RAY_SERVE_ENABLE_HA_PROXY"] == environment["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
        )
        leaving = float(environment["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"])
        for app in models_of(FLEET):
            graceful = app.get("deployments", [{}])[0].get("graceful_shutdown_timeout_s")
            settings = Settings()
            graceful = graceful or settings.drain_seconds + settings.shutdown_seconds
            assert leaving < graceful
            workers = pod.get("terminationGracePeriodSeconds", 10**6)
            assert graceful + leaving < workers


def test_the_head_draws_nothing_and_workers_have_a_gpu_each() -> None:
    cluster = SERVICE["spec"]["rayClusterConfig"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (worker,) = cluster["workerGroupSpecs"]
    assert worker["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    autoscaled = models_of(FLEET)[0]["deployments"][0]["autoscaling_config"]
    assert autoscaled["max_replicas"] <= worker["maxReplicas"]
