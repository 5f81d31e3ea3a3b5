"""What every test folder shares: an engine without a model, and the skipping of tests that need a GPU."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from twinshot_engine.errors import InvalidRequestError
from twinshot_engine.types import EngineInfo, GeneratedBatch, GenerateRequest, StageTimes

# Without a GPU kernels run in Triton's interpreter. Read when they are imported, which test modules do later.
os.environ.setdefault("TRITON_INTERPRET", str(int(not torch.cuda.is_available())))

INFO = EngineInfo(
    name="fake",
    family="FakePipeline",
    checkpoint="fake",
    revision=None,
    device="cpu",
    precision="fp32",
    torch_version="0",
    parameters={"transformer": 1},
    sizes=[(64, 32), (32, 32)],
    size_rule="64x32, 32x32",
    steps=(1, 2),
    max_prompt_tokens=16,
    load_seconds=0.25,
    vocabulary={"colors": ["red"]},
)


class FakeEngine:
    """Draws a flat colour made from the seed. `hold` keeps it busy; `failure` makes it fail."""

    info = INFO

    def __init__(self) -> None:
        self.batches: list[list[GenerateRequest]] = []
        self.failure: Exception | None = None
        self.busy = threading.Event()
        self._free = threading.Event()
        self._free.set()

    def hold(self) -> None:
        self._free.clear()

    def release(self) -> None:
        self._free.set()

    def warm(self, progress: object = None) -> None:
        pass

    def forget_warm_up(self) -> None:
        self.batches.clear()
        self.busy.clear()

    def validate(self, request: GenerateRequest) -> None:
        if (request.width, request.height) not in self.info.sizes:
            size = f"{request.width}x{request.height}"
            raise InvalidRequestError(f"The size {size} is not supported; supported: {self.info.size_rule}.")
        if request.steps not in self.info.steps:
            raise InvalidRequestError(f"{request.steps} steps are not supported; supported: 1 to 2.")
        if request.guidance != 1:
            raise InvalidRequestError(f"The guidance {request.guidance:g} is not supported at 1 steps.")

    def generate(self, requests: Sequence[GenerateRequest]) -> GeneratedBatch:
        self.batches.append(list(requests))
        self.busy.set()
        assert self._free.wait(10), "nobody released the engine"
        if self.failure:
            raise self.failure
        shape = (requests[0].height, requests[0].width, 3)
        images = [np.full(shape, request.seed % 256, dtype=np.uint8) for request in requests]
        return GeneratedBatch(np.stack(images), StageTimes(text=0.001, denoise=0.002, decode=0.003))


@pytest.fixture
def fake_engine() -> Iterator[FakeEngine]:
    fake = FakeEngine()
    yield fake
    fake.release()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
