"""Whole runs on a tiny checkpoint: what they leave is served, resumed and shared as promised."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoint import SIDE, write_tiny

from twinshot_distill.distillation import distill
from twinshot_distill.errors import TrainingError
from twinshot_distill.runfile import RunFile, read_run_file
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.opening import find_checkpoint
from twinshot_engine.types import GenerateRequest

TRANSFORMER = "checkpoint/transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("base") / "tiny")


def run_file(folder: Path, base: Path, pictures: Path, changes: Mapping[str, Any]) -> RunFile:
    path = folder / "run.toml"
    path.write_text(
        f'checkpoint = "{base}"\nsize = [{SIDE}, {SIDE}]\nbatch = 4\nprecision = "fp32"\n'
        f'[data]\nkind = "folder"\npath = "{pictures}"\n[length]\nsteps = 4\n[saving]\nsteps = 2\n'
        f"[optimizer]\nlearning_rate = 1e-3\n"
    )
    return read_run_file(path, changes)


def served(checkpoint: Path, *adapters: str) -> np.ndarray[Any, Any]:
    config = EngineConfig(str(checkpoint), device="cpu", precision="fp32", adapters=adapters)
    engine = Engine.load(config)
    return engine.generate([GenerateRequest("a red car", 1, SIDE, SIDE, steps=2)]).images


def same(a: Path, b: Path) -> bool:
    first, second = load_file(a), load_file(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_full_run_is_served_and_agrees_to_the_bit_when_resumed(
    tmp_path: Path, base: Path, pictures: Path
) -> None:
    whole = run_file(tmp_path, base, pictures, {"saving.average": 0.9})
    distill(whole, tmp_path / "whole", "cpu")
    assert not np.array_equal(served(tmp_path / "whole" / "checkpoint"), served(base))
    cut = run_file(tmp_path, base, pictures, {"saving.average": 0.9, "length.steps": 3})
    distill(cut, tmp_path / "parts", "cpu")
    distill(whole, tmp_path / "parts", "cpu")
    assert same(tmp_path / "whole" / TRANSFORMER, tmp_path / "parts" / TRANSFORMER)
    card = json.loads((tmp_path / "whole" / "checkpoint" / "twinshot.json").read_text())
    assert card["name"] == "tiny"


@pytest.mark.parametrize("deterministic", [True, False])
def test_an_operation_that_adds_in_no_fixed_order_is_refused_where_bits_count(
    tmp_path: Path, base: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    def train(_: object) -> None:
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))

    monkeypatch.setattr("twinshot_distill.distillation._Run.train", train)
    run = run_file(tmp_path, base, pictures, {"deterministic": deterministic})
    refused = pytest.raises(TrainingError, match=r"put_.*Set deterministic = false")
    with refused if deterministic else nullcontext():
        distill(run, tmp_path / "out", "cpu")
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_plain_checkpoint_gets_a_second_time_embedder(tmp_path: Path, pictures: Path) -> None:
    plain = write_tiny(tmp_path / "plain", second_embedder=False)
    distill(run_file(tmp_path, plain, pictures, {"length.steps": 1}), tmp_path / "out", "cpu")
    names = load_file(tmp_path / "out" / TRANSFORMER).keys()
    assert any(name.startswith("t_embedder_2.") for name in names)
    served(tmp_path / "out" / "checkpoint")


@pytest.mark.parametrize("decay", [0.0, 0.99, 1.0])
def test_a_lora_run_leaves_an_adapter_and_a_merged_checkpoint(
    tmp_path: Path, base: Path, pictures: Path, decay: float
) -> None:
    changes = {
        "lora.rank": 4,
        "lora.alpha": 8.0,
        "lora.targets": ["to_q", "to_out.0"],
        "objective.teacher_decay": decay,
        "precision": "bf16" if decay == 1 else "fp32",
        "objective.groups": {"one": 1, "any": 0},
        "objective.order": 1,
    }
    distill(run_file(tmp_path, base, pictures, changes), tmp_path / "out", "cpu")
    adapter = load_file(tmp_path / "out" / "adapter" / "pytorch_lora_weights.safetensors")
    before = load_file(base / "transformer" / "diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "out" / TRANSFORMER)
    # The one-time variant has no use for the second embedder, and leaves a stock layout where there is none.
    name = "layers.0.attention.to_q"
    low, high = (adapter[f"transformer.{name}.lora_{letter}.weight"].float() for letter in "AB")
    merged = before[f"{name}.weight"].float() + high @ low
    assert high.abs().max() > 0
    torch.testing.assert_close(after[f"{name}.weight"].float(), merged, rtol=0.02, atol=2e-3)
    untouched = "layers.0.feed_forward.w1.weight"
    assert torch.equal(after[untouched], before[untouched])
    assert len(adapter) == 2 * 2 * (2 + 1 + 1)
    adapted = served(base, str(tmp_path / "out" / "adapter" / "pytorch_lora_weights.safetensors"))
    whole = served(tmp_path / "out" / "checkpoint")
    assert np.abs(adapted.astype(int) - whole.astype(int)).max() <= 4  # merged in fp32, or stored in bf16


def test_a_caption_that_is_too_long_is_skipped_and_a_sample_prompt_refused(
    tmp_path: Path, base: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    long = "a very red car beside a blue cat " * 600
    (tmp_path / "prompts.txt").write_text(f"a red car\n{long}\n" * 4)
    changes: dict[str, Any] = {
        "data.kind": "prompts",
        "data.path": str(tmp_path / "prompts.txt"),
        "data.most_skipped": 0.5,
        "objective.data_free": True,
        "length.steps": 2,
    }
    distill(run_file(tmp_path, base, tmp_path, changes), tmp_path / "out", "cpu")
    said = capfd.readouterr().err
    assert said.count("tokens, more than the") == 4
    assert "Token indices sequence length" not in said
    changes["reporting.prompts"] = [long]
    with pytest.raises(TrainingError, match=r"reporting.prompts: its caption, 'a very red car.*tokens"):
        distill(run_file(tmp_path, base, tmp_path, changes), tmp_path / "out", "cpu")


def test_prompts_alone_train_without_data(tmp_path: Path, base: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red car\n\na blue cat\n" * 20)
    changes = {
        "data.kind": "prompts",
        "data.path": str(tmp_path / "prompts.txt"),
        "data.most_skipped": 0.5,
        "objective.data_free": True,
        "objective.teacher_decay": 1.0,
        "objective.enhanced_ratio": 4.0,
        "length.steps": 1,
    }
    distill(run_file(tmp_path, base, tmp_path, changes), tmp_path / "out", "cpu")
    served(tmp_path / "out" / "checkpoint")


@pytest.mark.parametrize("lora", [False, True])
def test_recomputed_blocks_and_accumulation_give_the_same_gradients(
    tmp_path: Path, base: Path, pictures: Path, *, lora: bool
) -> None:
    changes: dict[str, Any] = {"length.steps": 1, "accumulate": 2}
    changes |= {"lora.rank": 2, "lora.targets": ["to_v"]} if lora else {}
    for name, extra in (("kept", {}), ("again", {"gradient_checkpointing": True})):
        settings = changes | extra | {"data.cache": str(tmp_path / "cache")}
        distill(run_file(tmp_path, base, pictures, settings), tmp_path / name, "cpu")
    assert same(tmp_path / "kept" / TRANSFORMER, tmp_path / "again" / TRANSFORMER)


def test_bf16_trains_in_fp32_masters(tmp_path: Path, base: Path, pictures: Path) -> None:
    changes = {"precision": "bf16", "length.steps": 1, "reporting.sample_seconds": 0.001}
    distill(run_file(tmp_path, base, pictures, changes), tmp_path / "out", "cpu")
    state = load_file(tmp_path / "out" / "state" / "step-00000001" / "rank-0.safetensors")
    assert state["model/student.transformer.layers.0.attention.to_q.weight"].dtype == torch.float32
    assert list((tmp_path / "out" / "samples").glob("*.webp"))


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def two_processes(*arguments: str | Path, program: str = "") -> None:
    """Run a program, PROGRAM if none is given, as two processes of one group on this machine."""
    common = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program or PROGRAM, *arguments],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=200)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(errors)


PROGRAM = """
import json, sys
from pathlib import Path
from twinshot_distill.distillation import distill
from twinshot_distill.runfile import read_run_file
distill(read_run_file(Path(sys.argv[1]), json.loads(sys.argv[3])), Path(sys.argv[2]), "cpu")
# Threads that outlive their group may abort the process.
assert not [path for path in Path("/proc/self/task").glob("*/comm") if "gloo" in path.read_text()]
"""


TURNS = """
import sys, time
from twinshot_distill.processes import joined
with joined("cpu") as (processes, _):
    with processes.in_turn():
        began = time.time()
        time.sleep(0.3)
        with open(sys.argv[1], "a") as file:
            file.write(f"{processes.rank} {began} {time.time()}\\n")
"""


def test_processes_of_a_machine_take_turns(tmp_path: Path) -> None:
    two_processes(tmp_path / "turns", program=TURNS)
    first, second = (line.split() for line in (tmp_path / "turns").read_text().splitlines())
    assert (first[0], second[0]) == ("0", "1")
    assert float(first[2]) <= float(second[1])


def test_each_of_two_processes_says_what_is_wrong(tmp_path: Path, base: Path, pictures: Path) -> None:
    run_file(tmp_path, base, pictures, {})
    wrong = json.dumps({"lora.rank": 2, "lora.targets": ["to_z"]})
    with pytest.raises(AssertionError, match=r"(?s)TrainingError: lora.targets.*TrainingError: lora.targets"):
        two_processes(tmp_path / "run.toml", tmp_path / "out", wrong)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "changes",
    [
        {"saving.average": 0.5},
        pytest.param({"lora.rank": 2, "precision": "bf16"}, marks=pytest.mark.slow),
    ],
    ids=["full", "lora"],
)
def test_two_processes_share_a_model_and_resume_to_the_bit(
    tmp_path: Path, base: Path, pictures: Path, changes: dict[str, Any]
) -> None:
    run_file(tmp_path, base, pictures, {})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder, steps in ((whole, 2), (parts, 1), (parts, 2)):
        told = json.dumps(changes | {"length.steps": steps})
        two_processes(tmp_path / "run.toml", folder, told)
    assert same(whole / TRANSFORMER, parts / TRANSFORMER)
    assert not same(whole / TRANSFORMER, base / TRANSFORMER.removeprefix("checkpoint/"))
    saved = sorted(path.name for path in (whole / "state/step-00000002").iterdir())
    assert saved == ["rank-0.safetensors", "rank-1.safetensors", "state.json"]
    served(whole / "checkpoint")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": [60, 64]}, "multiples of 16 pixels"),
        ({"lora.rank": 2, "lora.targets": ["to_k", "to_z"]}, r"lora.targets: .*\['to_z'\]"),
        ({"data.path": "/nowhere"}, "'/nowhere' does not exist"),
        ({"objective.groups": {"one": 1, "any": 1}}, "batch of 4 rows is too small"),
    ],
)
def test_what_cannot_be_trained_is_said_in_words(
    tmp_path: Path, base: Path, pictures: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(TrainingError, match=words):
        distill(run_file(tmp_path, base, pictures, changes), tmp_path / "out", "cpu")


def test_families_that_cannot_be_trained_are_named(tmp_path: Path) -> None:
    from twinshot_distill.families import find_family

    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(TrainingError, match="'FluxPipeline', which cannot be trained: ZImagePipeline"):
        find_family(find_checkpoint(str(tmp_path)))
