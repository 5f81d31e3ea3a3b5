"""Finding TensorRT: missing, of another version, and what it builds for."""

import sys
from types import ModuleType, SimpleNamespace

import fake_tensorrt
import pytest
import torch

from twinshot_engine.errors import EngineFilesError
from twinshot_engine.tensorrt import targets
from twinshot_engine.tensorrt.library import RELEASES, Library, find_library
from twinshot_engine.tensorrt.targets import choose_targets, current_target, known_targets

RTX = Library(
    "tensorrt_rtx",
    "1.7.1",
    SimpleNamespace(
        ComputeCapability=SimpleNamespace(
            __members__=dict.fromkeys(["NONE", "CURRENT", "SM75", "SM86", "SM89", "SM120"])
        )
    ),
)
REAL_TARGET = current_target


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """Modules that can be imported; nothing else of TensorRT is here."""
    for release in RELEASES.values():
        for name in release.modules:
            monkeypatch.setitem(sys.modules, name, None)
    modules: dict[str, ModuleType] = {}

    class Installed(dict[str, ModuleType]):
        def __setitem__(self, name: str, module: ModuleType) -> None:
            monkeypatch.setitem(sys.modules, name, module)

    return Installed(modules)


def module(version: str) -> ModuleType:
    made = ModuleType("made")
    made.__version__ = version  # type: ignore[attr-defined]
    return made


def test_what_is_missing_is_named_with_what_installs_it(installed: dict[str, ModuleType]) -> None:
    with pytest.raises(EngineFilesError) as error:
        find_library()
    assert "tensorrt_rtx and tensorrt cannot be imported" in str(error.value)
    assert "pip install 'twinshot-server[tensorrt-rtx]'" in str(error.value)
    with pytest.raises(EngineFilesError, match=r"^tensorrt cannot be imported: pip install '.*\[tensorrt\]'"):
        find_library("tensorrt")


@pytest.mark.parametrize(
    ("name", "version"),
    [("tensorrt", "8.6.1"), ("tensorrt", "10.13.3"), ("tensorrt", "11.0.0"), ("tensorrt_rtx", "2.0.0.1")],
)
def test_other_versions_are_refused(installed: dict[str, ModuleType], name: str, version: str) -> None:
    installed[name] = module(version)
    with pytest.raises(EngineFilesError, match=f"{name} is {version}, which is not supported: from"):
        find_library(name)


def test_the_first_that_is_installed_is_taken(installed: dict[str, ModuleType]) -> None:
    installed["tensorrt"] = fake_tensorrt
    assert find_library().name == "tensorrt"
    installed["tensorrt_rtx_bindings"] = module("1.7.1.116")
    found = find_library()
    assert (found.name, found.version, found.builds_ahead) == ("tensorrt_rtx", "1.7.1.116", True)


def test_every_gpu_that_computes_in_the_precision_is_built_for() -> None:
    assert known_targets(RTX) == ("sm_75", "sm_86", "sm_89", "sm_120")
    assert choose_targets(RTX, (), "bf16") == ("sm_86", "sm_89", "sm_120")
    assert choose_targets(RTX, (), "fp8") == ("sm_89", "sm_120")
    assert choose_targets(RTX, ("sm_120", "sm_86", "sm_120"), "fp16") == ("sm_86", "sm_120")


def test_fp8_is_refused_where_it_cannot_be_computed() -> None:
    with pytest.raises(EngineFilesError, match="sm_86 does not compute in fp8: sm_89, sm_120 does"):
        choose_targets(RTX, ("sm_86",), "fp8")


def test_tensorrt_builds_for_the_gpu_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library("tensorrt", "10.14.1", fake_tensorrt)
    monkeypatch.setattr(targets, "current_target", lambda _device: "sm_86")
    assert choose_targets(library, (), "bf16") == ("sm_86",)
    with pytest.raises(EngineFilesError, match="does not build for 'sm_89' here: sm_86 are accepted"):
        choose_targets(library, ("sm_89",), "bf16")


def test_a_gpu_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (12, 0))
    assert REAL_TARGET(torch.device("cuda", 0)) == "sm_120"
