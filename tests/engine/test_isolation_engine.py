"""The engine runs where Triton does not exist."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.types import GenerateRequest

engine = Engine.load(EngineConfig(sys.argv[1], device="cpu", threads=1))
print(engine.generate([GenerateRequest("a red apple", seed=1)]).images.shape)
"""


def test_draws_an_image_without_triton(tiny: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", CODE, str(tiny)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "(1, 256, 256, 3)"
