"""Pins what the images install, with hashes: `make lock` writes `deploy/locks` anew, with uv.

`base.txt` is what both images hold, `gpu.txt` torch and what comes along with it for CUDA, `cpu.txt` torch
alone, `build.txt` what builds the wheel. All versions fit Python 3.11 and newer on Linux.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCKS = ROOT / "deploy/locks"
EXTRAS = ("fa3", "otel")
COMMAND = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"]
MEASURED = ("torch==2.11.0", "triton==3.6.0")
"""What the figures in docs/BENCHMARKS.md were measured with on a GPU."""
GPU = re.compile(r"(torch|triton|fa3-fwd|nvidia-.*|cuda-.*)==")
_TITLE = "# Written by make lock.\n"


def resolve(requirements: str, *options: str) -> list[str]:
    """The pinned packages with their hashes, one text a package. Raises CalledProcessError where uv fails."""
    command = [*COMMAND, "--no-header", "--no-annotate", *options, "-"]
    done = subprocess.run(  # noqa: S603 - the command above
        command, input=requirements, capture_output=True, text=True, check=True, cwd=ROOT
    )
    return re.findall(r"^\S.*?(?=^\S|\Z)", done.stdout, re.MULTILINE | re.DOTALL)


def write(name: str, packages: list[str]) -> None:
    """Write one lock."""
    (LOCKS / name).write_text(_TITLE + "".join(packages), encoding="utf-8")


def main() -> None:
    """Write the locks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    optional = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *(line for extra in EXTRAS for line in optional[extra])]
    packages = resolve("\n".join([*wanted, *MEASURED]))
    write("base.txt", [package for package in packages if not GPU.match(package)])
    write("gpu.txt", [package for package in packages if GPU.match(package)])
    # Without hashes: PyTorch's CPU wheels lie in an index of their own, and are other files.
    (newest,) = (package for package in resolve("\n".join(wanted)) if package.startswith("torch=="))
    write("cpu.txt", [newest.split()[0], "\n"])
    write("build.txt", resolve("\n".join(project["build-system"]["requires"])))


if __name__ == "__main__":
    main()
