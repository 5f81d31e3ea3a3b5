"""The folders beside this package must never shadow somebody else's, and Triton is optional."""

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_name_kernels_stays_hugging_faces() -> None:
    spec = importlib.util.find_spec("kernels")
    places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    assert ROOT / "kernels" not in places


def test_source_roots_are_not_packages() -> None:
    roots = ("kernels", "engine", "server", "distill")
    assert not [name for name in roots if (ROOT / name / "__init__.py").exists()]


def test_importing_needs_no_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import twinshot_kernels as k; print(len(k.__all__))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0
