"""What can be known of the images without an engine: lint, users, forms, locks, and that compose fits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import BOARD, CHART, ROOT, program
from dockerfile import stages
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from twinshot_server.checkup import check_caches
from twinshot_server.settings import DEFAULTS, Settings

STAGES = stages(ROOT / "Dockerfile")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
TARGETS = ("cpu", "cuda")
LOCKS = {name: (ROOT / f"deploy/locks/{name}.txt").read_text("utf-8") for name in ("base", "gpu", "build")}
PINNED = {
    canonicalize_name(name): pinned
    for text in LOCKS.values()
    for name, pinned in re.findall(r"^([\w.-]+)==([\w.+!]+)", text, re.MULTILINE)
}


def test_hadolint_has_no_complaint() -> None:
    done = subprocess.run(
        [program("hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_does_not_run_as_root(target: str) -> None:
    assert STAGES[target].base == "runtime"
    assert STAGES[target].steps[-1] == ("USER", "10001:10001")
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))["podSecurityContext"]
    assert f"{values['runAsUser']}:{values['runAsGroup']}" == "10001:10001"


def test_the_program_gets_signals_itself() -> None:
    assert STAGES["runtime"].command("ENTRYPOINT") == ["twinshot"]
    assert STAGES["runtime"].command("CMD") == ["serve"]
    assert not any(STAGES[target].all("ENTRYPOINT") or STAGES[target].all("CMD") for target in TARGETS)


def test_everything_that_is_kept_lies_on_the_one_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = STAGES["runtime"].pairs("ENV")
    assert STAGES["runtime"].all("VOLUME") == ["/cache"]
    kept = {
        "HOME",
        "XDG_CACHE_HOME",
        "HF_HOME",
        "TRITON_CACHE_DIR",
        "TORCHINDUCTOR_CACHE_DIR",
        "CUDA_CACHE_PATH",
    }
    assert {name for name, value in environment.items() if value.startswith("/cache")} == kept
    monkeypatch.setenv("TRITON_CACHE_DIR", environment["TRITON_CACHE_DIR"])
    told = {finding.check: finding.found for finding in check_caches()}
    assert told["kernel cache"].startswith("/cache/triton")


def test_settings_of_the_image_are_settings_of_the_server() -> None:
    given = [name for name in STAGES["runtime"].pairs("ENV") if name.startswith("TWINSHOT_")]
    assert given == ["TWINSHOT_HOST"]
    assert STAGES["runtime"].all("EXPOSE") == [str(DEFAULTS.port)]


def test_labels_say_what_it_is() -> None:
    labels = STAGES["runtime"].pairs("LABEL")
    wanted = {"title", "description", "licenses", "version", "revision", "created"}
    assert {name.removeprefix("org.opencontainers.image.") for name in labels} == wanted
    assert labels["org.opencontainers.image.licenses"] == PROJECT["project"]["license"]
    assert STAGES["runtime"].pairs("ARG")["VERSION"] == PROJECT["project"]["version"]


def test_triton_finds_a_compiler_where_there_are_gpus() -> None:
    assert "gcc libc6-dev" in STAGES["cuda"].all("RUN")[0]


def healthy(port: int | str) -> bool:
    """Whether the image's own look finds the server at this port well."""
    _, *command = STAGES["runtime"].command("HEALTHCHECK")
    environment = os.environ | {"TWINSHOT_PORT": str(port)}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, timeout=30, check=False
    )
    return done.returncode == 0


def test_the_healthcheck_tells_a_ready_server_from_none(pod: str) -> None:
    assert healthy(pod.rpartition(":")[2])
    assert not healthy(1)


def test_every_package_of_the_locks_has_hashes_and_names_no_place() -> None:
    for text in LOCKS.values():
        for package in re.findall(r"^[\w.-]+==.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL):
            assert "--hash=sha256:" in package
        assert "://" not in text


def test_the_locks_fit_to_what_the_project_asks_for() -> None:
    optional = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *optional["otel"], *optional["fa3"]]
    for line in [*wanted, *PROJECT["build-system"]["requires"]]:
        requirement = Requirement(line)
        pinned = PINNED.get(canonicalize_name(requirement.name))
        assert pinned is not None, f"{requirement.name} is not locked: run make lock"
        assert requirement.specifier.contains(pinned), f"{requirement.name} {pinned} is locked: run make lock"


def test_gpu_packages_are_apart() -> None:
    assert re.search(r"^torch==[\d.]+ ?", LOCKS["gpu"], re.MULTILINE)
    assert re.fullmatch(r"#.*\ntorch==[\d.]+\n", (ROOT / "deploy/locks/cpu.txt").read_text("utf-8"))
    assert not re.search(r"^(torch|triton|nvidia|cuda|fa3)", LOCKS["base"], re.MULTILINE)


def included() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*", "nothing goes to the builder that is not named"
    return [pattern[1:] for pattern in patterns if pattern.startswith("!")]


def test_the_builder_gets_what_the_wheel_is_made_of() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    files = [
        PROJECT["project"]["readme"],
        *PROJECT["project"]["license-files"],
        "pyproject.toml",
        "deploy/locks",
    ]
    assert {path.split("/")[0] for path in wheel} | set(files) == set(included())
    assert all((ROOT / path).exists() for path in included())


def test_compose_builds_what_the_dockerfile_has() -> None:
    service = COMPOSE["services"]["twinshot"]
    assert service["build"]["target"] == "${TARGET:-cpu}"
    assert service["build"]["args"].keys() <= STAGES["packages-cpu"].pairs("ARG").keys()
    assert service["image"].startswith(f"twinshot:{PROJECT['project']['version']}-")
    given = {name for name in service["environment"] if name.startswith("TWINSHOT_")}
    assert given <= {f"TWINSHOT_{field.upper()}" for field in Settings.model_fields}
    assert (
        int(service["stop_grace_period"].removesuffix("s"))
        > DEFAULTS.drain_seconds + DEFAULTS.shutdown_seconds
    )


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_compose_is_careful(name: str) -> None:
    service = COMPOSE["services"][name]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert re.search(r":v?\d+\.\d+", service["image"])
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    for volume in service["volumes"]:
        source = volume.split(":")[0]
        assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]


def test_grafana_finds_prometheus_and_the_board() -> None:
    folder = ROOT / "deploy/grafana/provisioning"
    source = yaml.safe_load((folder / "datasources/prometheus.yaml").read_text("utf-8"))["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    path = yaml.safe_load((folder / "dashboards/twinshot.yaml").read_text("utf-8"))["providers"][0][
        "options"
    ]["path"]
    mounts = dict(reversed(mount.split(":")[:2]) for mount in COMPOSE["services"]["grafana"]["volumes"])
    assert (ROOT / mounts[path] / BOARD.name).samefile(BOARD)
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{path}/{BOARD.name}"


def test_prometheus_reads_its_configuration(tmp_path: Path) -> None:
    command = [program("promtool"), "check", "config", str(ROOT / "deploy/prometheus/prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_installed_server_is_of_the_version_that_the_image_names() -> None:
    assert version("twinshot-server") == PROJECT["project"]["version"]
