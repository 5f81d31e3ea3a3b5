"""`twinshot doctor`: what it finds on this machine, and on machines that a test makes up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from twinshot_kernels import benchmark_cases
from twinshot_server import checkup, inspection, rehearsal
from twinshot_server.checkup import Finding, Status
from twinshot_server.cli import app
from twinshot_server.settings import Settings

CHECKS = (
    "versions",
    "driver",
    "gpu",
    "kernels",
    "attention",
    "model files",
    "memory",
    "hub cache",
    "kernel cache",
)


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_this_machine_can_serve_the_miniature(run: Callable[..., Any]) -> None:
    result = run("doctor", "--json")
    facts = json.loads(result.stdout)
    assert result.returncode == 0, facts
    assert facts["faults"] == 0
    assert tuple(dict.fromkeys(finding["check"] for finding in facts["findings"])) == CHECKS


def test_a_start_is_timed_by_stage_if_asked_for(run: Callable[..., Any]) -> None:
    result = run("doctor", "--start", "--device", "cpu", "--json")
    *_, last = json.loads(result.stdout)["findings"]
    assert (last["check"], last["status"]) == ("cold start", "ok"), last
    total, stages = last["found"].split(" s: ")
    seconds = {stage.rsplit(" ", 1)[0]: float(stage.rsplit(" ", 1)[1]) for stage in stages.split(", ")}
    assert {"process", "importing", "text encoder", "transformer", "decoder", "warming"} <= seconds.keys()
    assert float(total) == pytest.approx(sum(seconds.values()), abs=0.05 * (len(seconds) + 1))


def test_a_start_that_fails_is_a_fault() -> None:
    settings = Settings(engine="twinshot_server.stub_engine:no_such_function")
    finding = only(checkup.check_start(settings, lambda _stage, _done: None))
    assert finding.status is Status.FAULT
    assert "AttributeError" in finding.found


def test_an_engine_that_dies_at_its_start_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(stage: str, _done: float) -> None:
        if stage == "stub":
            children[-1].kill()

    children: list[rehearsal.ProcessChild] = []

    class Known(rehearsal.ProcessChild):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            children.append(self)

    monkeypatch.setattr(rehearsal, "ProcessChild", Known)
    monkeypatch.setenv("TWINSHOT_STUB_LOAD_MS", "20000")
    finding = only(checkup.check_start(Settings(engine="twinshot_server.stub_engine:load_stub"), kill))
    assert (finding.status, finding.found) == (Status.FAULT, "its process ended: killed by signal 9")


def test_people_read_a_line_a_check() -> None:
    result = CliRunner().invoke(app, ["doctor", "--device", "cpu"])
    assert result.exit_code == 0
    assert "ok     model files   builtin, ZImagePipeline, 43.7 MB" in result.stdout
    assert result.stdout.splitlines()[-1] == "0 faults."


def test_a_missing_checkpoint_is_a_fault_with_a_remedy(run: Callable[..., Any], tmp_path: Path) -> None:
    result = run("doctor", "--checkpoint", "org/name@v2", HF_HOME=str(tmp_path / "hub"))
    assert result.returncode == 1
    assert "FAULT  model files" in result.stdout
    assert "Fetch it with: hf download org/name\n" in result.stdout
    assert result.stdout.splitlines()[-1] == "1 fault."
    assert not (tmp_path / "hub" / "hub").exists()


@pytest.mark.parametrize(
    ("checkpoint", "advice"),
    [("builtin", "Install twinshot-server again."), (".", "Copy the checkpoint again, whole.")],
)
def test_a_damaged_checkpoint_is_a_fault(
    checkpoint: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinshot_engine.opening.BUILTIN_FOLDER", tmp_path / "gone")
    monkeypatch.chdir(tmp_path)
    findings = list(checkup.check_checkpoint(Settings(checkpoint=checkpoint, device="cpu")))
    faults = [finding for finding in findings if finding.check == "model files"]
    assert {(finding.status, finding.advice) for finding in faults} == {(Status.FAULT, advice)}


def test_too_little_memory_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "free_bytes", lambda _device: 1_000_000)
    files, finding = checkup.check_checkpoint(Settings(device="cpu"))
    assert files.status is Status.OK
    assert (finding.check, finding.status) == ("memory", Status.FAULT)
    assert finding.found.endswith("needed in fp32, 1.0 MB free on CPU")
    assert "--precision" in finding.advice


def test_unknown_memory_is_only_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "free_bytes", lambda _device: None)
    finding = list(checkup.check_checkpoint(Settings(device="cpu")))[-1]
    assert finding.status is Status.NOTE
    assert finding.found.endswith("unknown free on CPU")


@pytest.mark.parametrize(
    ("driver", "gpus", "cuda", "expected"),
    [
        (None, [], None, [("driver", "note"), ("gpu", "note")]),
        ("580.95", [], None, [("driver", "fault")]),
        ("470.1", [], "13.0", [("driver", "fault")]),
        (
            "580.95",
            ["NVIDIA H100, compute capability 9.0"] * 2,
            "13.0",
            [("driver", "ok"), *[("gpu", "ok")] * 2],
        ),
    ],
)
def test_gpu_and_driver(
    driver: str | None,
    gpus: list[str],
    cuda: str | None,
    expected: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkup, "driver", lambda: driver)
    monkeypatch.setattr(checkup, "gpus", lambda: gpus)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    findings = list(checkup.check_gpu())
    assert [(finding.check, finding.status) for finding in findings] == expected
    assert all(finding.advice for finding in findings if finding.status == "fault")


def test_an_unknown_attention_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINSHOT_ATTENTION", "fast")
    finding = only(checkup.check_attention())
    assert (finding.status, finding.found[:28]) == (Status.FAULT, "TWINSHOT_ATTENTION is 'fast'")


class MadeUpGpu:
    """A GPU whose kernels are these; says what ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        cases = [self._case(name) for name in ("norm", "norm", "swiglu")]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(benchmark_cases, "cases", lambda: iter(cases))

    def _case(self, name: str) -> Any:
        return SimpleNamespace(op=name, make=lambda: (name,), call=self.ran.append)


def test_every_kernel_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = MadeUpGpu(monkeypatch)
    finding = only(checkup.check_kernels())
    assert (finding.status, finding.found) == (Status.OK, "all 2 compile and run")
    assert sorted(gpu.ran) == ["norm", "swiglu"]


def test_a_kernel_that_does_not_compile_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    MadeUpGpu(monkeypatch)

    def broken() -> None:
        raise RuntimeError("no such\n instruction")

    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    finding = only(checkup.check_kernels())
    assert finding.status is Status.FAULT
    assert "swiglu: no such instruction" in finding.found


def test_kernels_need_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = MadeUpGpu(monkeypatch)
    monkeypatch.setenv("PATH", "/nowhere")
    finding = only(checkup.check_kernels())
    assert (finding.status, gpu.ran) == (Status.FAULT, [])
    assert "gcc" in finding.advice


def test_kernels_need_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    MadeUpGpu(monkeypatch)
    monkeypatch.setattr(checkup, "HAS_TRITON", False)
    assert only(checkup.check_kernels()).status is Status.NOTE


def test_caches_that_cannot_be_written_are_faults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(checkup, "HF_HUB_CACHE", str(tmp_path / "new" / "hub"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "kernels"))
    hub, kernels = checkup.check_caches()
    assert hub.status is not Status.FAULT
    assert (kernels.status, kernels.found) == (
        Status.FAULT,
        f"{tmp_path / 'file' / 'kernels'} cannot be written to",
    )
    assert not (tmp_path / "new").exists()


def test_a_nearly_full_disk_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup.shutil, "disk_usage", lambda _path: SimpleNamespace(free=3_000_000_000))
    assert {finding.status for finding in checkup.check_caches()} == {Status.NOTE}
