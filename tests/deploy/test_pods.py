"""What the rendered objects promise together: Pod Security, probes, farewell, GPUs, selection, scaling."""

from __future__ import annotations

from typing import Any

import pytest
from charts import CHART, VALUES, Object, one, render, rendered, server

from twinshot_server.settings import DEFAULTS

ALL = pytest.mark.parametrize("name", VALUES)


def pods(objects: list[Object]) -> list[Object]:
    """The pod specs of Deployment, Job and test."""
    found = [each["spec"]["template"] for each in objects if each["kind"] in {"Deployment", "Job"}]
    return [*found, *(each for each in objects if each["kind"] == "Pod")]


def containers(pod: Object) -> list[Object]:
    return [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]


@ALL
def test_every_pod_satisfies_the_restricted_level(name: str) -> None:
    for pod in pods(rendered(name)):
        around = pod["spec"]["securityContext"]
        assert around["runAsNonRoot"] is True
        assert around["runAsUser"] == 10001
        assert around["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod["spec"].keys()
        allowed = {"emptyDir", "persistentVolumeClaim", "secret"}
        assert all(volume.keys() - {"name"} <= allowed for volume in pod["spec"].get("volumes", []))
        for container in containers(pod):
            inside = container["securityContext"]
            assert inside["allowPrivilegeEscalation"] is False
            assert inside["capabilities"] == {"drop": ["ALL"]}
            assert inside["readOnlyRootFilesystem"] is True


@ALL
def test_no_pod_speaks_to_the_api_server_or_hears_of_services(name: str) -> None:
    for pod in pods(rendered(name)):
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["enableServiceLinks"] is False, "a service called twinshot would set TWINSHOT_PORT"


@ALL
def test_every_container_is_bounded_and_has_the_image(name: str) -> None:
    images = set()
    for pod in pods(rendered(name)):
        for container in containers(pod):
            images.add(container["image"])
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]
    assert len(images) == 1


@ALL
def test_gpus_are_requested_as_they_are_limited(name: str) -> None:
    resources = server(rendered(name))["resources"]
    gpus = {
        kind: {key: value for key, value in amounts.items() if "/" in key}
        for kind, amounts in resources.items()
    }
    assert gpus["requests"] == gpus["limits"]
    assert len(gpus["limits"]) == (0 if name == "cpu" else 1)


def test_each_gpu_has_an_engine() -> None:
    environment = {each["name"]: each.get("value") for each in server(rendered("keda"))["env"]}
    assert (environment["TWINSHOT_DEVICE"], environment["TWINSHOT_REPLICAS"]) == ("cuda", "2")
    assert server(rendered("keda"))["resources"]["limits"]["nvidia.com/mig-3g.40gb"] == "2"
    environment = {each["name"]: each.get("value") for each in server(rendered("cpu"))["env"]}
    assert (environment["TWINSHOT_DEVICE"], environment["TWINSHOT_REPLICAS"]) == ("cpu", "1")


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({}, "twinshot:0.1.0-cuda"),
        ({"gpu.count": 0}, "twinshot:0.1.0-cpu"),
        ({"image.repository": "r.example/a", "image.tag": "7"}, "r.example/a:7"),
        ({"image.tag": "7", "image.digest": f"sha256:{'0' * 64}"}, f"twinshot@sha256:{'0' * 64}"),
    ],
)
def test_the_image_is_a_version(values: dict[str, Any], image: str) -> None:
    assert server(render(values=values))["image"] == image


@ALL
def test_three_probes_look_at_three_places(name: str) -> None:
    container = server(rendered(name))
    looks = [container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "readiness", "liveness")]
    assert [look["path"] for look in looks] == ["/startupz", "/readyz", "/livez"]
    assert {look["port"] for look in looks} == {"http"}


@ALL
def test_the_farewell_fits_into_the_grace_period(name: str) -> None:
    deployment = one(rendered(name), "Deployment")["spec"]
    container = server(rendered(name))
    environment = {each["name"]: each.get("value") for each in container["env"]}
    drain = float(environment.get("TWINSHOT_DRAIN_SECONDS", DEFAULTS.drain_seconds))
    shutdown = float(environment.get("TWINSHOT_SHUTDOWN_SECONDS", DEFAULTS.shutdown_seconds))
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"] if "lifecycle" in container else 0
    assert pause + drain + shutdown < deployment["template"]["spec"]["terminationGracePeriodSeconds"]
    assert float(environment["TWINSHOT_DEADLINE_MS"]) <= shutdown * 1000


@pytest.mark.parametrize(("budget", "period", "failures"), [(300, 2, 150), (301, 2, 151), (10, 10, 1)])
def test_the_startup_probe_waits_for_the_whole_budget(budget: int, period: int, failures: int) -> None:
    values = {"probes.startup.budgetSeconds": budget, "probes.startup.periodSeconds": period}
    probe = server(render(values=values))["startupProbe"]
    assert (probe["periodSeconds"], probe["failureThreshold"]) == (period, failures)


@ALL
def test_a_slow_start_is_no_failed_update(name: str) -> None:
    probe = server(rendered(name))["startupProbe"]
    patience = one(rendered(name), "Deployment")["spec"]["progressDeadlineSeconds"]
    assert patience > probe["periodSeconds"] * probe["failureThreshold"]


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


@ALL
def test_the_service_and_the_budget_select_servers_alone(name: str) -> None:
    objects = rendered(name)
    serving = one(objects, "Deployment")["spec"]
    selectors = [
        one(objects, "Service")["spec"]["selector"],
        serving["selector"]["matchLabels"],
        one(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(objects, "NetworkPolicy", "server")["spec"]["podSelector"]["matchLabels"],
    ]
    for selector in selectors:
        for pod in pods(objects):
            assert selects(selector, pod["metadata"]["labels"]) is (pod is serving["template"])


def test_the_monitor_selects_the_service_and_names_one_job_for_all_releases() -> None:
    objects = rendered("keda")
    monitor, service = one(objects, "ServiceMonitor")["spec"], one(objects, "Service")
    assert selects(monitor["selector"]["matchLabels"], service["metadata"]["labels"])
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "twinshot"
    assert monitor["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]


@pytest.mark.parametrize("name", ["keda", "hpa"])
def test_where_something_scales_the_deployment_names_no_number(name: str) -> None:
    objects = rendered(name)
    assert "replicas" not in one(objects, "Deployment")["spec"]
    scalers = [each for each in objects if each["kind"] in {"HorizontalPodAutoscaler", "ScaledObject"}]
    assert len(scalers) == 1
    assert scalers[0]["spec"]["scaleTargetRef"]["name"] == one(objects, "Deployment")["metadata"]["name"]


def test_both_scalers_go_by_predicted_wait_and_queue() -> None:
    metrics = one(rendered("hpa"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert {each["pods"]["metric"]["name"]: each["pods"]["target"]["averageValue"] for each in metrics} == {
        "twinshot_predicted_wait_seconds": "250m",
        "twinshot_requests_waiting": "2.5",
    }
    triggers = [each["metadata"] for each in one(rendered("keda"), "ScaledObject")["spec"]["triggers"]]
    assert {each["query"]: each["threshold"] for each in triggers} == {
        'sum(twinshot_predicted_wait_seconds{namespace="toys",service="easel"})': "0.5",
        'sum(twinshot_requests_waiting{namespace="toys",service="easel"})': "4",
    }


def test_pods_that_fetch_reach_the_hub_and_no_others_do() -> None:
    def ways_out(name: str, part: str) -> list[int]:
        egress = one(rendered(name), "NetworkPolicy", part)["spec"]["egress"]
        return sorted({port["port"] for rule in egress for port in rule["ports"]})

    assert ways_out("cpu", "server") == [53]
    assert ways_out("h100", "server") == [53]
    assert ways_out("h100", "pull") == [53, 443]
    assert ways_out("hpa", "server") == [53, 443]


def test_a_pod_whose_checkpoint_is_fetched_waits_for_just_that() -> None:
    def mark(values: dict[str, Any]) -> tuple[str, str, str]:
        objects = render(CHART / "values-h100.yaml", values=values)
        job, waiting = (
            one(objects, "Job"),
            one(objects, "Deployment")["spec"]["template"]["spec"]["initContainers"][0],
        )
        return (
            job["metadata"]["name"],
            pods(objects)[1]["spec"]["containers"][0]["args"][-1],
            waiting["args"][-1],
        )

    first, second, third = (
        mark(values) for values in ({}, {"image.tag": "0.2.0-cuda"}, {"model.checkpoint": "a/b"})
    )
    for _, made, awaited in (first, second, third):
        assert made == awaited
    assert len({first, second, third}) == 3, "another checkpoint or image is fetched anew"
    name, made, _ = mark(
        {"cache.prePull.resources": {"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}}
    )
    assert name != first[0], "no field of a Job may change under its name"
    assert made == first[1]
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in server(rendered("h100"))["env"]


def test_secrets_are_named_and_never_rendered() -> None:
    environment = {each["name"]: each for each in server(rendered("keda"))["env"]}
    assert environment["TWINSHOT_ADMIN_KEY"]["valueFrom"] == {
        "secretKeyRef": {"name": "api-keys", "key": "admin"}
    }
    assert "HF_TOKEN" not in environment, "pods that wait for the Job need no token"
    job = one(rendered("keda"), "Job")["spec"]["template"]["spec"]["containers"][0]
    assert job["env"] == [
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
    ]
    assert "HF_TOKEN" in {each["name"] for each in server(rendered("hpa"))["env"]}
    assert not [found for name in VALUES for found in rendered(name) if found["kind"] == "Secret"]


def test_names_stay_within_what_kubernetes_allows() -> None:
    objects = render(CHART / "values-h100.yaml", release="r" * 53)
    assert max(len(found["metadata"]["name"]) for found in objects) <= 63


def test_two_releases_share_nothing() -> None:
    first, second = (render(CHART / "values-h100.yaml", release=name) for name in ("a", "b"))
    names = [{(each["kind"], each["metadata"]["name"]) for each in objects} for objects in (first, second)]
    assert not names[0] & names[1]
    assert not selects(one(first, "Service")["spec"]["selector"], pods(second)[0]["metadata"]["labels"])
