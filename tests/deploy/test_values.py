"""Bad values are refused before anything is installed, by a message that names them and what to change."""

from __future__ import annotations

import re
from typing import Any

import pytest
from charts import CHART, template

L4 = "NVIDIA-L4"
KEY = {"auth.existingSecret": "keys"}
OUTSIDE = {"networkPolicy.from": [{"namespaceSelector": {}}]}
INGRESS = {"ingress.enabled": True, "ingress.host": "pictures.example"}

WRONG: list[tuple[str, Any, str]] = [
    ("replicaCount", "two", "got string, want integer"),
    ("replicaCount", 0, "minimum: got 0, want 1"),
    ("gpu.count", -1, "minimum: got -1, want 0"),
    ("gpu.count", 1.5, "got number, want integer"),
    ("gpu.resource", "gpu", "does not match pattern"),
    ("gpu.cuont", 1, "additional properties 'cuont' not allowed"),
    ("model.precision", "int4", "must be one of 'auto', 'fp32', 'bf16', 'fp8'"),
    ("model.backend", "magic", "must be one of 'auto', 'eager', 'fused'"),
    ("model.checkpoint", "", "minLength: got 0, want 1"),
    ("model.sizes", "1024*1024", "'1024*1024' does not match pattern"),
    ("model.steps", "one", "'one' does not match pattern"),
    ("server.maxBatch", 65, "maximum: got 65, want 64"),
    ("server.maxqueue", 3, "additional properties 'maxqueue' not allowed"),
    ("server.deadlineMs", "1s", "got string, want integer"),
    ("server.logLevel", "loud", "must be one of 'debug', 'info', 'warning', 'error'"),
    ("server.drainSeconds", -1, "minimum: got -1, want 0"),
    ("image.digest", "abc", "'abc' does not match pattern"),
    ("image.pullPolicy", "Sometimes", "must be one of 'Always', 'IfNotPresent', 'Never'"),
    ("cache.size", "plenty", "'plenty' does not match pattern"),
    ("cache.accessModes", ["ReadOnlyMany"], "must be one of 'ReadWriteMany'"),
    ("cache.accessModes", [], "minItems: got 0, want 1"),
    ("service.type", "ExternalName", "must be one of 'ClusterIP', 'NodePort', 'LoadBalancer'"),
    ("service.port", 70000, "maximum: got 70,000, want 65,535"),
    ("ingress.path", "pictures", "'pictures' does not match pattern"),
    ("keda.serverAddress", "prometheus:9090", "does not match pattern"),
    ("keda.minReplicas", 0, "minimum: got 0, want 1"),
    ("autoscaling.waiting", 0, "exclusiveMinimum: got 0, want 0"),
    ("podDisruptionBudget.maxUnavailable", 0, "minimum: got 0, want 1"),
    ("serviceMonitor.interval", "15", "'15' does not match pattern"),
    ("prometheusRule.errorRatio", 5, "maximum: got 5, want 1"),
    ("extraEnv.TOKEN", {"secret": "x"}, "additional properties 'secret' not allowed"),
    ("networkPolicy.from", [{"podSelektor": {}}], "additional properties 'podSelektor' not allowed"),
    ("topologySpreadWhenUnsatisfiable", "Never", "must be one of 'ScheduleAnyway', 'DoNotSchedule'"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG, ids=lambda part: str(part)[:40])
def test_a_wrong_value_is_named(name: str, value: Any, message: str) -> None:
    done = template(values={name: value})
    assert done.returncode != 0
    places = [f"at '/{name.replace('.', '/')}", f"at '/{name.partition('.')[0]}'"]
    assert any(place in done.stderr for place in places)
    assert message in done.stderr


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"autoscaling.enabled": True, "keda.enabled": True}, "would set the number of pods: choose one."),
    ({"terminationGracePeriodSeconds": 39}, "is 39, but .* are 40 s together: raise it to 40 at least"),
    ({"server.drainSeconds": 60, "terminationGracePeriodSeconds": 60}, "are 95 s together: raise it to 95"),
    ({"server.drainSeconds": 0, "lifecycle.preStopSeconds": 0}, "both 0, .*: set one of them to 5."),
    ({"server.deadlineMs": 30001}, r"shorter than server.deadlineMs \(30001 ms\), .*: raise the one"),
    ({"probes.startup.budgetSeconds": 1}, "is shorter than probes.startup.periodSeconds .*: raise it"),
    ({"model.precision": "fp8"}, "fp8 needs a GPU that computes in fp8: name the nodes' GPU in gpu.product"),
    (
        {"model.precision": "fp8", "gpu.product": "NVIDIA-A100-SXM4-80GB"},
        "NVIDIA-A100-SXM4-80GB .*: choose bf16",
    ),
    ({"model.precision": "fp8", "gpu.product": "Tesla-T4"}, "gpu.product Tesla-T4 is not known to"),
    ({"model.textFp8": True, "gpu.product": "NVIDIA-A10G"}, "model.textFp8 needs a GPU .* NVIDIA-A10G"),
    ({"model.precision": "fp8", "gpu.count": 0}, "needs a GPU, but gpu.count is 0: set gpu.count to 1"),
    ({"model.backend": "fused", "gpu.count": 0}, "gpu.count is 0: set gpu.count to 1, or choose eager."),
    (
        {"resources.limits": {"nvidia.com/gpu": 1}},
        "resources.limits names nvidia.com/gpu: set gpu.count instead",
    ),
    (INGRESS | OUTSIDE, "asks for no key: set auth.existingSecret .*, or auth.allowAnonymous"),
    ({"service.type": "LoadBalancer"} | OUTSIDE, "asks for no key: set auth.existingSecret"),
    ({"httpRoute.enabled": True, "httpRoute.parentRefs": [{"name": "a"}]} | OUTSIDE, "asks for no key"),
    ({"auth.adminKey": "admin"}, "set auth.existingSecret, or leave auth.adminKey empty."),
    ({"auth.testKey": "test"}, "set auth.existingSecret, or leave auth.testKey empty."),
    ({"ingress.enabled": True} | KEY | OUTSIDE, "ingress.host is empty .*: set ingress.host."),
    ({"httpRoute.enabled": True} | KEY | OUTSIDE, "no gateway is named: set httpRoute.parentRefs."),
    (INGRESS | KEY, "would keep out what comes from outside: add a namespaceSelector or ipBlock"),
    ({"serviceMonitor.enabled": True}, "would keep out Prometheus: add a namespaceSelector or ipBlock"),
    (
        {"cache.enabled": True, "cache.accessModes": ["ReadWriteOnce"], "replicaCount": 2},
        "there may be 2 pods",
    ),
    ({"cache.enabled": True, "cache.accessModes": ["ReadWriteOnce"]}, "an update starts a second pod"),
    ({"cache.existingClaim": "models"}, "cache.enabled is false: set cache.enabled to true."),
    ({"cache.prePull.enabled": True, "model.checkpoint": "a/b"}, "pods share: set cache.enabled to true."),
    ({"cache.prePull.enabled": True, "cache.enabled": True}, "model.checkpoint builtin is no Hub id"),
    ({"strategy.maxSurge": 0}, "both 0, so that no update could begin: set maxSurge to 1"),
    (
        {"podDisruptionBudget.minAvailable": 1},
        "either maxUnavailable or minAvailable: set one of them to null.",
    ),
    ({"podDisruptionBudget.maxUnavailable": None}, "either maxUnavailable or minAvailable"),
    (
        {
            "podDisruptionBudget.maxUnavailable": None,
            "podDisruptionBudget.minAvailable": 2,
            "replicaCount": 2,
        },
        r"minAvailable \(2\) leaves none of 2 pods to be moved, .*: lower it, or use maxUnavailable.",
    ),
    (
        {"keda.enabled": True, "keda.minReplicas": 5},
        r"keda.minReplicas \(5\) is above keda.maxReplicas \(4\)",
    ),
    (
        {"autoscaling.enabled": True, "autoscaling.maxReplicas": 1, "autoscaling.minReplicas": 2},
        "is above autos",
    ),
    ({"serviceMonitor.interval": "5s"}, r"scrapeTimeout \(10s\) is longer than .*: lower the one or raise"),
    ({"image.tag": "latest"}, "image.tag latest tells nobody what runs: set a version, as 0.1.0-cuda"),
    (
        {"extraArgs": ["--drain-seconds=90"]},
        "holds --drain-seconds, which server.drainSeconds sets: change that",
    ),
    ({"extraArgs": ["--port", "9"]}, "extraArgs holds --port, which the chart sets: leave it out"),
    ({"extraEnv.TWINSHOT_TEXT_FP8": "1"}, "holds TWINSHOT_TEXT_FP8, which model.textFp8 sets: change that"),
    ({"extraEnv.HF_TOKEN": "hf_x"}, "holds HF_TOKEN, which hfToken.existingSecret sets: change that"),
    ({"extraEnv.TWINSHOT_API_KEYS": "a=b"}, "holds TWINSHOT_API_KEYS, which auth.existingSecret sets"),
    (
        {"podLabels": {"app.kubernetes.io/name": "x"}},
        "podLabels holds app.kubernetes.io/name, .*: leave it out.",
    ),
    ({"extraEnv.TWINSHOT_REPLICAS": "3"}, "holds TWINSHOT_REPLICAS, which gpu.count sets: change that"),
]


@pytest.mark.parametrize(("values", "sentence"), CONTRADICTIONS, ids=lambda part: str(part)[:50])
def test_a_contradiction_is_told_in_one_sentence(values: dict[str, Any], sentence: str) -> None:
    done = template(values=values)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines()[1:] if line and "--debug" not in line]
    assert len(lines) == 1, done.stderr
    assert re.search(sentence, lines[0]), lines[0]


def test_all_contradictions_are_told_at_once() -> None:
    values = {
        "autoscaling.enabled": True,
        "keda.enabled": True,
        "model.precision": "fp8",
        "strategy.maxSurge": 0,
    }
    told = template(values=values).stderr
    assert all(word in told for word in ("choose one", "gpu.product", "strategy.maxSurge"))


@pytest.mark.parametrize(
    "values",
    [
        {"terminationGracePeriodSeconds": 40},
        {"server.deadlineMs": 30000},
        {"server.drainSeconds": 0},
        {"lifecycle.preStopSeconds": 0},
        {"model.precision": "fp8", "gpu.product": L4},
        {"model.precision": "fp8", "gpu.product": "nvidia-h100-80gb"},
        {"model.textFp8": True, "gpu.product": "NVIDIA-RTX-6000-Ada-Generation"},
        {"model.precision": "fp8", "gpu.product": "NVIDIA-GeForce-RTX-4090"},
        {"model.precision": "fp8", "gpu.product": "NVIDIA-H100-80GB-HBM3-MIG-3g.40gb"},
        INGRESS | OUTSIDE | KEY,
        INGRESS | OUTSIDE | {"auth.allowAnonymous": True},
        INGRESS | KEY | {"networkPolicy.enabled": False},
        {
            "cache.enabled": True,
            "cache.accessModes": ["ReadWriteOnce"],
            "strategy": {"maxSurge": 0, "maxUnavailable": 1},
        },
        {"keda.enabled": True},
        {
            "podDisruptionBudget.maxUnavailable": None,
            "podDisruptionBudget.minAvailable": 1,
            "replicaCount": 2,
        },
        {"podDisruptionBudget.enabled": False},
        {"extraArgs": ["--json"], "extraEnv.TWINSHOT_ATTENTION": "sdpa"},
        {"model.checkpoint": "/models/mine"},
        {"global": {"imageRegistry": "x"}},
    ],
    ids=lambda values: str(values)[:50],
)
def test_what_does_not_contradict_is_rendered(values: dict[str, Any]) -> None:
    done = template(values=values)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", sorted(CHART.glob("values-*.yaml")), ids=lambda file: file.stem)
def test_the_charts_own_values_contradict_neither_each_other_nor_a_second_replica(file: Any) -> None:
    assert template(file, values={"replicaCount": 3}).returncode == 0
