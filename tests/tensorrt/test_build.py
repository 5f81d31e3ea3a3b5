"""Builds: what TensorRT for RTX makes of the built-in checkpoint, and how a build ends that is disturbed."""

import errno
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest
from building import GPU, SIZE, fake_order, quiet, real_order

from twinshot_engine.errors import CheckpointError, EngineFilesError
from twinshot_engine.tensorrt.build import BuildConfig, build
from twinshot_engine.tensorrt.check import TOLERANCE
from twinshot_engine.tensorrt.manifest import read_manifest, verify_engine

pytestmark = pytest.mark.timeout(600)  # the first test waits for engines to be built
REAL_HEADER = 64


@pytest.fixture
def unfinished(built: Path, tmp_path: Path) -> Path:
    """What the fake built, without one engine and so without a manifest."""
    folder = Path(shutil.copytree(built, tmp_path / "unfinished"))
    (folder / "manifest.json").unlink()
    (folder / "decoder-256x256.engine").unlink()
    return folder


def test_every_stage_is_built_for_the_named_gpus(really_built: Path) -> None:
    manifest = read_manifest(really_built)
    stages = [(engine.stage, engine.size) for engine in manifest.engines]
    assert stages == [("text", None), ("transformer", SIZE), ("decoder", SIZE)]
    assert (manifest.library, manifest.targets) == ("tensorrt_rtx", (GPU, "sm_120"))
    assert (manifest.family, manifest.batch_sizes, manifest.tokens) == ("ZImagePipeline", (1, 2), (32, 64))


def test_every_stage_equals_torch_in_onnxruntime(really_built: Path) -> None:
    errors = [engine.onnx_error for engine in read_manifest(really_built).engines]
    assert all(error is not None and 0 < error <= TOLERANCE for error in errors)


def test_inputs_outputs_and_profiles_are_told(really_built: Path) -> None:
    transformer = read_manifest(really_built).engine("transformer", SIZE)
    inputs = {port.name: port for port in transformer.inputs}
    assert list(inputs) == ["latents", "fresh", "modulation", "weights", "caption_0"]
    assert inputs["latents"].shape == (-1, 8, 32, 32)
    assert inputs["caption_0"].profiles == (
        ((1, 32, 320), (1, 64, 320), (1, 64, 320)),
        ((2, 32, 320), (2, 64, 320), (2, 64, 320)),
    )
    decoder = read_manifest(really_built).engine("decoder", SIZE)
    assert [(port.name, port.type, port.shape) for port in decoder.outputs] == [
        ("images", "uint8", (-1, 256, 256, 3))
    ]


def test_plans_are_whole_and_of_this_version(really_built: Path) -> None:
    """TensorRT reads a plan on a GPU alone; its header says everywhere how long it is and who made it."""
    manifest = read_manifest(really_built)
    version = bytes(int(part) for part in manifest.library_version.split("."))
    for engine in manifest.engines:
        plan = verify_engine(really_built, engine)
        assert len(plan) == engine.bytes > 1e6
        assert engine.bytes.to_bytes(8, "little") in plan[:REAL_HEADER]
        assert version in plan[:REAL_HEADER]
        assert all(port.name.encode() in plan for port in (*engine.inputs, *engine.outputs))


def test_only_engines_and_what_was_asked_for_is_left(really_built: Path) -> None:
    kept = {path.name for path in really_built.iterdir()}
    engines = {"text.engine", "transformer-256x256.engine", "decoder-256x256.engine"}
    assert kept == {*engines, "manifest.json", "journal.json", "onnx"}


def test_a_finished_build_does_nothing(really_built: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in really_built.glob("*.engine")}
    told: list[str] = []
    again = build(real_order(really_built), lambda what, _done: told.append(what))
    assert again == read_manifest(really_built)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert told == ["checkpoint", "done"]


def test_a_build_goes_on_where_it_stopped(unfinished: Path) -> None:
    text = (unfinished / "text.engine").stat().st_mtime_ns
    told: list[tuple[str, float]] = []
    build(fake_order(unfinished), lambda what, done: told.append((what, done)))
    assert (unfinished / "text.engine").stat().st_mtime_ns == text
    assert [what for what, _ in told] == [
        "checkpoint",
        "decoder-256x256: engine",
        "decoder-256x256: building",
        "done",
    ]
    assert [done for _, done in told] == sorted(done for _, done in told)
    assert read_manifest(unfinished).engine("decoder", SIZE)


def test_an_engine_that_was_changed_is_built_again(unfinished: Path) -> None:
    (unfinished / "text.engine").write_bytes(b"other")
    build(fake_order(unfinished), quiet)
    manifest = read_manifest(unfinished)
    assert verify_engine(unfinished, manifest.engine("text"))


def test_other_batch_sizes_build_engines_and_export_nothing(built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built, tmp_path / "other"))
    told: list[str] = []
    manifest = build(replace(fake_order(folder), batch_sizes=(1, 4)), lambda what, _done: told.append(what))
    assert manifest.batch_sizes == (1, 4)
    assert not [what for what in told if "export" in what]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_no_half_file_and_no_manifest(
    unfinished: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any) -> Any:
        raise OSError(number, "no space")

    with monkeypatch.context() as patch:
        patch.setattr("twinshot_engine.tensorrt.disk.os.fsync", fail)
        with pytest.raises(EngineFilesError, match=r"The disk is full while '.*' is written"):
            build(fake_order(unfinished), quiet)
    assert not (unfinished / "manifest.json").exists()
    assert not list(unfinished.glob(".*"))
    assert not (unfinished / "decoder-256x256.engine").exists()
    assert build(fake_order(unfinished), quiet).engine("decoder", SIZE)


def test_a_disk_that_is_full_for_the_library_is_told(
    unfinished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real error of the system, which has to pass through the library that knows nothing of it."""

    def fill(_self: Any, _network: Any, _config: Any, out: Any) -> bool:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
        try:
            return bool(out.write(b"x" * (1 << 22)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    with monkeypatch.context() as patch:
        patch.setattr(fake_tensorrt.Builder, "build_serialized_network_to_stream", fill)
        with pytest.raises(EngineFilesError, match="The disk is full"):
            build(fake_order(unfinished), quiet)
    assert not (unfinished / "manifest.json").exists()
    assert not list(unfinished.glob(".*"))


def test_ctrl_c_while_building_leaves_what_is_done(unfinished: Path) -> None:
    def stop(what: str, _done: float) -> None:
        if what.endswith("building"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(fake_order(unfinished), stop)
    assert not (unfinished / "manifest.json").exists()
    assert not list(unfinished.glob(".*"))
    assert build(fake_order(unfinished), quiet).engine("decoder", SIZE)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ("parse", "TensorRT has no Strange as in 'node_strange' of '.*': it is not known."),
        ("build", "TensorRT cannot build this engine: no kernel was found."),
    ],
)
def test_what_the_library_refuses_is_told(unfinished: Path, call: str, sentence: str) -> None:
    fake_tensorrt.refused.add(call)
    with pytest.raises(EngineFilesError, match=sentence):
        build(fake_order(unfinished), quiet)
    assert not (unfinished / "manifest.json").exists()


def test_timings_are_kept_for_the_next_build(built: Path, unfinished: Path) -> None:
    before = (built / "timing.cache").read_bytes()
    build(fake_order(unfinished), quiet)
    assert (unfinished / "timing.cache").read_bytes() == before + b"timed "


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"targets": ("sm_90",)}, r"does not build for 'sm_90' here: sm_75, .*sm_121 are accepted"),
        ({"targets": ("sm_75",), "precision": "bf16"}, r"sm_75 does not compute in bf16: sm_80, .* does"),
        ({"targets": ("sm_75", GPU)}, "sm_75 shares no engine with sm_89: build for it alone"),
        ({"sizes": ((300, 300),)}, "Sizes 300x300 are not supported; supported: 256x256"),
        ({"checkpoint": "./nothing"}, "There is no folder or file './nothing'"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(tmp_path: Path, wish: dict[str, Any], sentence: str) -> None:
    order = replace(real_order(tmp_path / "new"), **wish)
    with pytest.raises(CheckpointError, match=sentence):
        build(order, quiet)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"precision": "int4"}, "Precision 'int4' is not one of fp32"),
        ({"batch_sizes": (2,)}, "from 1 to 16, 1 among"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, wish: dict[str, Any], sentence: str) -> None:
    with pytest.raises(EngineFilesError, match=sentence):
        BuildConfig("builtin", tmp_path, **wish)
