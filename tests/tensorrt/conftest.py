"""A tiny checkpoint of every family, a fake TensorRT, and engines that it built."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import fake_tensorrt
import pytest
import torch
from tiny_models import GPU, TINY_Z_IMAGE, fake_order, quiet

from twinshot_engine import random_weights
from twinshot_engine.tensorrt import targets
from twinshot_engine.tensorrt.build import build

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> Iterator[str]:
    """The reference of a tiny Z-Image, with random weights and the built-in checkpoint's tokenizer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_weights, "PUBLISHED", {"tiny": TINY_Z_IMAGE})
        yield "random:tiny"


@pytest.fixture(scope="session")
def fake_library() -> Iterator[None]:
    """A fake TensorRT is installed, and this machine passes for one with a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", fake_tensorrt)
        patch.setattr(targets, "current_target", lambda _device: GPU)
        yield


@pytest.fixture(scope="session")
def built(tiny: str, fake_library: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of the tiny checkpoint, built by the fake; do not change them."""
    folder = tmp_path_factory.mktemp("engines")
    build(fake_order(tiny, folder), quiet)
    return folder


@pytest.fixture
def engines(built: Path, tmp_path: Path) -> Path:
    """Engines of the test's own."""
    return Path(shutil.copytree(built, tmp_path / "engines"))


@pytest.fixture(autouse=True)
def nothing_refused() -> Iterator[None]:
    """Every test starts with a fake that does all it is asked for."""
    yield
    fake_tensorrt.refused.clear()
