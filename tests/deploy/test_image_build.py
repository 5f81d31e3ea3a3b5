"""The steps of the cpu image, replayed in a clean virtual environment: slow, so only when asked for."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from charts import ROOT
from dockerfile import Replay, stages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
STAGES = stages(ROOT / "Dockerfile")


def build_context(folder: Path) -> Path:
    """What .dockerignore lets through of the files that git knows."""
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    included = tuple(line[1:] for line in lines if line.startswith("!"))
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if name.startswith(tuple(f"{path}/" for path in included)) or name in included:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def index_of_torch(folder: Path) -> str:
    """A package index with the torch that pip finds on this machine, where that is without CUDA."""
    found = re.search(r"^torch==([\d.]+)", (ROOT / "deploy/locks/cpu.txt").read_text("utf-8"), re.MULTILINE)
    assert found
    (folder / "torch").mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder / "torch")]
    done = subprocess.run([*command, f"torch=={found[1]}+cpu"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip finds no torch {found[1]}+cpu here: set PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS")
    wheel = next((folder / "torch").glob("*.whl"))
    (folder / "torch/index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>', "utf-8")
    return folder.as_uri()


def test_the_cpu_image_draws(tmp_path: Path) -> None:
    context = build_context(tmp_path / "context")
    replay = Replay(tmp_path / "root", context, {"TORCH_INDEX": index_of_torch(tmp_path / "index")})
    for name in ("wheel", "packages", "packages-cpu"):
        replay.run(STAGES[name])
    assert_complete(replay.inside("/opt/twinshot/bin"))
    assert_serves(replay)


def assert_complete(programs: Path) -> None:
    checked = subprocess.run(
        [programs / "python", "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


def assert_serves(replay: Replay) -> None:
    """It serves with the image's environment, its health is seen, and it ends with 0 on SIGTERM."""
    cache = replay.inside("/cache")
    cache.mkdir()
    given = STAGES["runtime"].pairs("ENV")
    environment = {name: value.replace("/cache", str(cache)) for name, value in given.items()}
    environment |= {
        "PATH": f"{replay.inside('/opt/twinshot/bin')}{os.pathsep}/usr/bin:/bin",
        "TWINSHOT_HOST": "127.0.0.1",
    }
    entry = STAGES["runtime"].command("ENTRYPOINT") + STAGES["runtime"].command("CMD")
    entry[0] = str(replay.inside("/opt/twinshot/bin") / entry[0])
    command = [*entry, "--json", "--port", "0", "--drain-seconds", "0"]
    with subprocess.Popen(command, cwd=cache, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            port = json.loads(process.stdout.readline())["url"].rpartition(":")[2]
            look = STAGES["runtime"].command("HEALTHCHECK")
            look[0] = str(replay.inside("/opt/twinshot/bin/python"))
            subprocess.run(look, env=environment | {"TWINSHOT_PORT": port}, check=True, timeout=30)
            assert draw(port).startswith(b"\x89PNG")
        finally:
            process.terminate()
        assert process.wait(60) == 0


def draw(port: str) -> bytes:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/generate",
        data=b'{"prompt": "a red car"}',
        headers={"Content-Type": "application/json", "Accept": "image/png"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        content: bytes = answer.read()
    return content
