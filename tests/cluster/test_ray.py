"""Ray Serve itself: `pytest -m ray`, in a Python with the extra `[ray]`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import yaml

pytest.importorskip("ray", reason="needs the extra [ray]")
from fleet.clients import apply_mixed_load
from fleet.cluster import MODEL, STUB_ARGUMENTS, Cluster, cluster
from fleet.ray_load import measure_cluster, measure_path
from fleet.rolling import SMALL_STUB
from twinshot import Client
from twinshot_server.cluster import gateway, model

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("default"),  # Ray's own use of pydantic is deprecated
]
DEPLOY = Path(__file__).parents[2] / "deploy" / "ray"


def test_the_manifests_are_what_ray_accepts() -> None:
    from ray.serve.schema import ServeDeploySchema

    service = yaml.safe_load((DEPLOY / "rayservice.yaml").read_text())
    for text in ((DEPLOY / "local.yaml").read_text(), service["spec"]["serveConfigV2"]):
        ServeDeploySchema.model_validate(yaml.safe_load(text))


def test_builders_make_applications() -> None:
    from ray.serve import Application

    assert isinstance(model.build({"device": "cpu"}), Application)
    assert isinstance(gateway.build({"models": ["a"]}), Application)


def test_a_replica_killed_and_one_taken_away_lose_nothing(tmp_path: Path) -> None:
    findings = measure_cluster(tmp_path, 30.0, 4, stub=True)
    assert [each for each in findings if each.kept is False] == []


def test_what_the_path_costs_is_measured(tmp_path: Path) -> None:
    findings = {each.figure: each.measured for each in measure_path(tmp_path, 20)}
    assert findings["HAProxy: beyond the engine, p50"] > 0


@pytest.fixture(scope="module")
def autoscaled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with cluster(folder, STUB_ARGUMENTS, None, **SMALL_STUB | {"TWINSHOT_STUB_MS": "400"}) as made:
        yield made


def test_replicas_follow_the_requests_and_leave_without_losing_any(autoscaled: Cluster) -> None:
    assert len(autoscaled.replicas()) == 1
    seen: set[int] = set()

    def stop(seconds: float) -> bool:
        seen.add(len(autoscaled.replicas()))
        return seconds > 40

    busy = asyncio.run(apply_mixed_load(f"{autoscaled.url}/{MODEL}", 6, stop))
    assert max(seen) > 1
    started = time.monotonic()
    calm = asyncio.run(
        apply_mixed_load(
            f"{autoscaled.url}/{MODEL}",
            1,
            lambda _spent: len(autoscaled.replicas()) == 1 or time.monotonic() - started > 90,
        )
    )
    assert len(autoscaled.replicas()) == 1
    assert busy.lost == calm.lost == []
    assert calm.failed_tries == 0


def test_models_are_called_by_path_and_by_name(autoscaled: Cluster) -> None:
    with Client(f"{autoscaled.url}/{MODEL}") as client:
        alone = client.generate("a red car", seed=7)
    body = {"prompt": "a red car", "model": MODEL}
    named = httpx2.post(f"{autoscaled.url}/v1/images/generations", json=body)
    assert alone.image.size == (256, 256)
    assert named.status_code == 200
    refused = httpx2.post(f"{autoscaled.url}/v1/images/generations", json={"prompt": "a", "model": "x"})
    assert refused.status_code == 404
    (listed,) = httpx2.get(f"{autoscaled.url}/v1/models").json()["data"]
    assert listed["id"] == MODEL
