"""Serving from engines: pictures, buffers, shapes, and every way in which engines may not fit."""

import logging
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
from building import SIZE

from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.errors import EngineFilesError, InvalidRequestError
from twinshot_engine.tensorrt import targets
from twinshot_engine.types import GenerateRequest

pytestmark = pytest.mark.timeout(600)  # the first test waits for engines to be built

REAL_TARGET = targets.current_target


def load(engines: Path | str | None, **more: Any) -> Engine:
    wanted: dict[str, Any] = {"batch_sizes": (1, 2), "steps": (1, 2), **more}
    return Engine.load(EngineConfig(device="cpu", engines=engines and str(engines), **wanted))


def ask(count: int, steps: int = 1) -> list[GenerateRequest]:
    prompts = ("a red apple", "a blue vase " * 5, "two green pears")
    return [GenerateRequest(prompts[i % 3], i, *SIZE, steps) for i in range(count)]


@pytest.fixture(scope="module")
def served(built: Path) -> Engine:
    engine = load(built)
    engine.warm()
    return engine


@pytest.mark.parametrize(("count", "steps"), [(1, 1), (1, 2), (5, 1)])
def test_pictures_are_those_of_torch(served: Engine, count: int, steps: int) -> None:
    alone = load(None, sizes=(SIZE,))
    found, expected = (each.generate(ask(count, steps)).images for each in (served, alone))
    gap = np.abs(found.astype(int) - expected.astype(int))
    assert gap.max() <= 1
    assert gap.mean() < 0.01


def test_a_picture_does_not_depend_on_what_was_drawn_before(served: Engine) -> None:
    first = served.generate(ask(1)).images
    served.generate(ask(3, steps=2))
    assert np.array_equal(served.generate(ask(1)).images, first)


def test_captions_and_batches_of_one_call_keep_their_own_values(served: Engine) -> None:
    requests = ask(2)
    first, second = served.encode_text(requests)
    kept = first[0].clone()
    served.encode_text(ask(3)[2:])
    assert np.array_equal(first[0].numpy(), kept.numpy())
    assert first[0].data_ptr() != second[0].data_ptr()


def test_info_tells_what_runs(served: Engine) -> None:
    assert (served.info.backend, served.info.precision, served.info.sizes) == (
        "tensorrt",
        "fp32",
        (SIZE,),
    )


def test_no_weight_is_loaded(served: Engine) -> None:
    assert all(p.is_meta for part in served.model.parts.values() for p in part.parameters())


def test_batches_are_the_largest_that_were_built(served: Engine) -> None:
    assert served.stages.batches(5) == [2, 2, 1]


def test_the_folder_decides_on_the_backend(built: Path) -> None:
    assert EngineConfig(device="cpu", engines=str(built)).placement().backend == "tensorrt"


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"precision": "bf16"}, "The engines are in fp32, not in bf16."),
        ({"sizes": ((512, 512),)}, "No engine was built for the decoder of 512x512: sizes 256x256 were."),
        ({"batch_sizes": (1, 4)}, "The engines are for batches of 1, 2 images, not of 4."),
    ],
)
def test_what_was_not_built_is_refused(built: Path, wish: dict[str, Any], sentence: str) -> None:
    with pytest.raises(EngineFilesError) as error:
        load(built, **wish)
    assert str(error.value) == sentence


def test_engines_of_another_checkpoint_are_refused(built: Path) -> None:
    with pytest.raises(EngineFilesError, match=r"than 'random:z-image': .* from 'builtin'"):
        load(built, checkpoint="random:z-image")


def test_engines_for_another_gpu_are_refused(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "current_target", lambda _device: "sm_90")
    with pytest.raises(EngineFilesError, match=r"The engines are for sm_89, and this GPU is sm_90\."):
        load(built)


def test_a_machine_without_a_gpu_is_refused(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "current_target", REAL_TARGET)
    with pytest.raises(EngineFilesError, match="run on a GPU, not on 'cpu'"):
        load(built)


def test_engines_of_another_version_are_refused(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_tensorrt, "__version__", "10.15.0")
    with pytest.raises(EngineFilesError, match=r"of tensorrt 10\.14\.1\.0, but 10\.15\.0 is here"):
        load(built)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineFilesError, match=r"manifest\.json' is missing: 'twinshot build' writes it"):
        load(tmp_path)


def test_an_engine_that_was_changed_is_refused(engines: Path) -> None:
    path = next(engines.glob("decoder-*.engine"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(EngineFilesError, match=r"decoder-256x256\.engine' was changed after it was built"):
        load(engines)


def test_an_engine_that_was_cut_off_is_refused(engines: Path) -> None:
    path = next(engines.glob("text.engine"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EngineFilesError, match=r"has [0-9]+ bytes, not [0-9]+"):
        load(engines)


def test_an_engine_that_is_gone_is_named(engines: Path) -> None:
    (engines / "text.engine").unlink()
    with pytest.raises(EngineFilesError, match=r"text\.engine' cannot be read"):
        load(engines)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ("deserialize", "tensorrt cannot load '.*text.engine': made for another driver."),
        ("shape", "tensorrt refuses the shapes of 'decoder-256x256.engine'"),
    ],
)
def test_what_the_library_refuses_is_told(built: Path, call: str, sentence: str) -> None:
    fake_tensorrt.refused.add(call)
    with pytest.raises(EngineFilesError, match=sentence):
        load(built).warm()


def test_a_failure_while_drawing_is_not_taken_for_a_picture(served: Engine) -> None:
    fake_tensorrt.refused.add("execute")
    with pytest.raises(RuntimeError, match="TensorRT did not run"):
        served.generate(ask(1))


def test_falling_back_is_done_when_asked_for_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        engine = load(tmp_path, fallback=True, sizes=(SIZE,))
    assert engine.info.backend == "eager"
    assert "Serving without TensorRT" in caplog.text
    assert "is missing" in caplog.text


@pytest.mark.parametrize("wish", [{"backend": "tensorrt"}, {"backend": "fused", "engines": "somewhere"}])
def test_backend_and_engines_go_together(wish: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="'tensorrt' goes together with engines"):
        EngineConfig(**wish)


def test_adapters_cannot_change_engines(served: Engine, built: Path) -> None:
    with pytest.raises(InvalidRequestError, match="Engines of TensorRT take no adapters"):
        served.load_adapter("style", "style.safetensors")
    with pytest.raises(ValueError, match=r"adapters style\.safetensors cannot change engines"):
        load(built, adapters=("style.safetensors",))
