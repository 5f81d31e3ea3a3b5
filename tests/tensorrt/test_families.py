"""Small configurations of every family: each stage's ONNX equals torch, for shapes it was not recorded at."""

from pathlib import Path

import pytest
from tiny_families import TINY

from twinshot_engine import random_weights
from twinshot_engine.families.model import Model
from twinshot_engine.tensorrt.check import TOLERANCE, check_onnx
from twinshot_engine.tensorrt.export import export_stage
from twinshot_engine.tensorrt.source import Source
from twinshot_engine.tensorrt.stages import Stage, export_stages

SIZE = (272, 256)
"""Leaves image tokens that Z-Image pads."""

pytestmark = pytest.mark.timeout(600)
Found = tuple[Model, dict[str, Stage]]


@pytest.fixture(scope="module", params=[*TINY])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """A tiny model of one family with random weights, and its stages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_weights, "PUBLISHED", {"tiny": TINY[request.param]})
        source = Source.find("random:tiny", (SIZE,), (1,))
        model = source.load("fp32", tmp_path_factory.mktemp("weights"))
    return model, {stage.kind: stage for stage in export_stages(model, source.sizes)}


@pytest.mark.parametrize("kind", ["text", "transformer", "decoder"])
def test_every_stage_equals_torch(found: Found, kind: str, tmp_path: Path) -> None:
    model, stages = found
    graph = export_stage(stages[kind], tmp_path / "onnx")
    assert check_onnx(graph, stages[kind], model) <= TOLERANCE
