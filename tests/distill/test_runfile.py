"""Run files: those that come along are the published settings, and mistakes are told in words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from twinshot_distill.errors import TrainingError
from twinshot_distill.miniature.configuration import Run
from twinshot_distill.runfile import RunFile, find_run, named_runs, read_run_file
from twinshot_distill.runs import check_run, start_run

GOOD = 'checkpoint = "builtin"\nbatch = 4\n[length]\nsteps = 3\n[data]\nkind = "composer"\ncount = 8\n'

PUBLISHED: dict[str, tuple[Any, ...]] = {
    # enhanced ratio, teacher decay, order, rectify, learning rate, betas, LoRA rank
    "qwen-image": (0.8, 0.0, 2, 0.5, 1e-5, (0.9, 0.99), None),
    "qwen-image-lora-1": (4.0, 1.0, 1, 0.5, 1e-4, (0.9, 0.99), 64),
    "qwen-image-lora-2": (0.8, 0.99, 2, 0.5, 1e-4, (0.9, 0.99), 64),
    "sd35": (0.8, 0.99, 2, 0.5, 1e-5, (0.9, 0.99), None),
    "sd35-lora-1": (0.8, 0.0, 1, 0.5, 1e-4, (0.9, 0.99), 64),
    "sd35-lora-2": (0.8, 0.99, 2, 0.5, 1e-4, (0.9, 0.99), 64),
    "sana-0-6b": (0.8, 0.99, 2, 0.5, 1e-4, (0.9, 0.95), None),
    "sana-1-6b": (0.8, 0.99, 2, 0.5, 1e-4, (0.9, 0.99), None),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_settings(name: str) -> None:
    run = read_run_file(find_run(name))
    objective, optimizer = run.objective, run.optimizer
    found = (
        *(objective.enhanced_ratio, objective.teacher_decay, objective.order, objective.rectify),
        *(optimizer.learning_rate, optimizer.betas, run.lora and run.lora.rank),
    )
    assert found == PUBLISHED[name]
    assert (objective.distance, objective.enhanced_range, objective.consistency) == ("barron", (0, 1), 1)
    assert optimizer.name == ("radam" if name.startswith("sana") else "adamw")
    assert (optimizer.weight_decay, optimizer.clip, run.size, run.seed) == (0, 1, (512, 512), 42)
    groups = objective.groups
    first_order_lora = name.endswith("lora-1")
    assert (groups.one, groups.any) == ((1, 0) if first_order_lora else (0, 1))
    assert (groups.e2e, groups.mul, groups.adv) == (1, 1, 1)


def test_every_run_file_that_comes_along_is_sound() -> None:
    assert {"z-image", "builtin", "miniature", *PUBLISHED} == set(named_runs())
    for name in named_runs():
        check_run(name, {}).as_json()


def test_the_miniatures_file_is_what_the_code_does_without_one() -> None:
    assert check_run("miniature", {}).settings == Run()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + "[objective]\nordr = 2\n", r"objective\.ordr: there is no such setting"),
        (GOOD + "[objective.groups]\nfoo = 3\n", r"objective\.groups\.foo: there is no such setting"),
        (GOOD + '[objective]\norder = "x"\n', r"objective\.order: .*integer.*'x'"),
        (GOOD + '[objective]\ndistance = "l3"\n', r"objective\.distance: .*'barron' or 'l2', not 'l3'"),
        (GOOD + "[objective]\nteacher_decay = 2.0\n", "teacher_decay 2.0 must be between 0 and 1"),
        (GOOD.replace("batch = 4", "batch = 3"), "batch of 3 rows is too small"),
        (GOOD.replace("batch = 4", "batch = 0"), "batch: .*greater than 0, not 0"),
        (GOOD.replace("steps = 3", ""), "length: a run needs a length"),
        (GOOD.replace("count = 8", ""), "'composer' needs a count"),
        (GOOD.replace('"composer"', '"folder"'), "'folder' needs a path"),
        (GOOD.replace('"composer"', '"prompts"\npath = "x"'), "objective.data_free must be true"),
        (GOOD + '[lora]\nrank = 4\n[objective]\nguide = "start"\n', "guide must be 'teacher'"),
        ("batch = 3", "checkpoint: field required"),
        ("x = [", "cannot be read as TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=words):
        read_run_file(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("length.steps", 0), ("length.seconds", -5), ("batch.x", 3)),
        *(("optimizer.learning_rate", -1), ("optimizer.betas", [2, 3]), ("optimizer.clip", -1)),
        *(("optimizer.warm_up", -5), ("lora.rank", 0), ("lora.alpha", 0), ("objective.times", [0, 1, 1])),
        *(("objective.rectify", -1), ("objective.enhanced_range", [1, 0]), ("objective.leap_share", 4)),
        *(("objective.enhanced_ratio", -1), ("objective.groups.e2e", math.nan)),
    ],
)
def test_numbers_that_are_not_accepted_are_named(name: str, value: Any) -> None:
    table, _, setting = name.partition(".")
    with pytest.raises(TrainingError, match=rf"{table}.*{setting[:6]}.* (must be|has no settings)"):
        check_run("builtin", {name: value})


def test_settings_are_replaced_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(GOOD)
    run = read_run_file(tmp_path / "run.toml", {"data.count": 5, "lora.rank": 8, "size": [64, 32]})
    assert (run.data.count, run.lora and run.lora.rank, run.size) == (5, 8, (64, 32))
    settings = check_run("miniature", {"flow.batch": 7, "twinflow.objective.rectify": 0.25}).settings
    assert isinstance(settings, Run)
    assert (settings.flow.batch, settings.twinflow.objective.rectify) == (7, 0.25)


def test_unknown_runs_settings_and_devices_are_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"There is no run file 'flux'"):
        check_run("flux", {})
    with pytest.raises(TrainingError, match=r"unknown setting 'flow.bach=7'"):
        check_run("miniature", {"flow.bach": 7})
    with pytest.raises(TrainingError, match=r"seconds 0\.0 must be above 0"):
        check_run("miniature", {"flow.seconds": 0})
    with pytest.raises(TrainingError, match="'tpu' is not 'auto', 'cuda' or 'cpu'"):
        start_run(check_run("builtin", {}), tmp_path, "tpu")
    with pytest.raises(TrainingError, match="nothing to prepare"):
        start_run(check_run("miniature", {}), tmp_path, "cpu", prepare_only=True)


def test_settings_survive_as_json(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(GOOD)
    run = read_run_file(tmp_path / "run.toml")
    assert isinstance(run, RunFile)
    told = run.as_json()
    assert told["objective"]["groups"] == {"e2e": 1, "mul": 1, "one": 0, "any": 1, "adv": 1}


def test_a_gpu_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("builtin", "miniature"):
        with pytest.raises(TrainingError, match="device 'cuda': torch finds no GPU here; 'cpu' and 'auto'"):
            start_run(check_run(name, {}), tmp_path / "out", "cuda")
    assert not (tmp_path / "out").exists()
