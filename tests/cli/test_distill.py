"""`twinshot distill` and `twinshot evaluate`, in this process with tiny models, and as the program."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tiny_checkpoint import SIDE, write_tiny
from typer.testing import CliRunner

from twinshot_server.cli import app

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    monkeypatch.chdir(tmp_path)
    return CliRunner()


def pictures(folder: Path) -> Path:
    folder.mkdir()
    for index in range(4):
        Image.new("RGB", (SIDE, SIDE), (60 * index, 0, 0)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"red number {index}")
    return folder


def test_a_run_ends_with_a_checkpoint_and_goes_on_when_asked_again(
    cli: CliRunner, base: Path, tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text(
        f'checkpoint = "{base}"\nsize = [{SIDE}, {SIDE}]\nbatch = 4\n[length]\nsteps = 1\n'
        f'[data]\nkind = "folder"\npath = "{pictures(tmp_path / "pictures")}"\n'
    )
    arguments = ["distill", "run.toml", "-o", "out", "--device", "cpu", "--json"]
    done = cli.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    left = json.loads(done.stdout)
    assert left == {"cache": "out/cache", "checkpoint": "out/checkpoint"}
    assert (tmp_path / "out" / "checkpoint" / "model_index.json").is_file()
    assert "training 0." in done.stderr
    again = cli.invoke(app, [*arguments, "--set", "length.steps=2"])
    assert again.exit_code == 0, again.output
    assert "resumed at step 1" in again.stderr
    refused = cli.invoke(app, [*arguments, "--set", "objective.order=1"])
    assert refused.exit_code == 2
    assert "objective.order = 2, not 1" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_preparing_only_fills_the_cache(cli: CliRunner, base: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    changes = [
        f"checkpoint={base}",
        f"size=[{SIDE},{SIDE}]",
        "data.kind=prompts",
        "data.path=prompts.txt",
        "objective.data_free=true",
    ]
    options = [part for change in changes for part in ("--set", change)]
    done = cli.invoke(app, ["distill", "z-image", *options, "-o", "out", "--device", "cpu", "--prepare-only"])
    assert done.exit_code == 0, done.output
    assert done.stdout == "out/cache\n"


def test_a_dry_run_prints_all_settings(cli: CliRunner) -> None:
    done = cli.invoke(
        app, ["distill", "qwen-image-lora-2", "--dry-run", "--set", "optimizer.learning_rate=2e-4"]
    )
    told = json.loads(done.stdout)
    assert told["optimizer"]["learning_rate"] == 2e-4
    assert told["lora"]["rank"] == 64
    assert told["patience"] == 10
    for rank in ("0", "1"):
        one = cli.invoke(app, ["distill", "builtin", "--dry-run"], env={"WORLD_SIZE": "2", "RANK": rank})
        assert bool(one.stdout) == (rank == "0")
    assert "qwen-image-lora-2" in cli.invoke(app, ["distill", "--help"]).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["distill", "flux"], "There is no run file 'flux'"),
        (["distill", "builtin", "--set", "steps"], "'steps' is not a setting"),
        (["distill", "builtin", "--set", "batch=0"], "batch: input should be greater than 0, not 0"),
        (["distill", "builtin", "--device", "tpu"], "'tpu' is not"),
        (["evaluate", "geneval", "none.jsonl", "--device", "cpu"], "'none.jsonl' cannot be read"),
        (["evaluate", "builtin", "--device", "cuda:99"], "'cuda:99' does not exist: use auto"),
        (["evaluate", "builtin", "--combinations", "odd"], "'odd' is not 'seen' or 'unseen'"),
        (["evaluate", "builtin", "--count", "0"], "at least 1"),
        (["evaluate", "builtin", "--batch", "0"], "--batch 0 must be at least 1"),
        (["evaluate", "builtin", "--steps", "1", "--steps", "0"], "--steps 0 is not supported: 1 to 100 are"),
        (["evaluate", "geneval", "m.jsonl", "--steps", "101"], "--steps 101 is not supported: 1 to 100 are"),
        (["evaluate", "dpg", "p.jsonl", "--steps", "0"], "--steps 0 is not supported: 1 to 100 are"),
        (["evaluate", "dpg", "p.jsonl", "--device", "gpu"], "device 'gpu' is not"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(cli: CliRunner, arguments: list[str], words: str) -> None:
    done = cli.invoke(app, arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_geneval_pictures_of_a_checkpoint(cli: CliRunner, base: Path, tmp_path: Path) -> None:
    entry = {"tag": "single_object", "include": [], "prompt": "a photo of a cow"}
    (tmp_path / "m.jsonl").write_text(json.dumps(entry) + "\n")
    arguments = ["evaluate", "geneval", "m.jsonl", "--checkpoint", str(base), "--device", "cpu", "--json"]
    done = cli.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"drawn": 1, "folder": "geneval"}
    with Image.open("geneval/00000/samples/0003.png") as picture:
        assert picture.size == (SIDE, SIDE)
    odd = cli.invoke(app, [*arguments, "--size", "big"])
    assert "'big' is not WIDTHxHEIGHT" in odd.stderr


def test_checkpoints_of_another_world_are_not_judged(cli: CliRunner, base: Path) -> None:
    done = cli.invoke(app, ["evaluate", "builtin", "--checkpoint", str(base), "--device", "cpu"])
    assert done.exit_code == 2
    assert "tiny does not say that it knows the built-in world's objects" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_builtin_checkpoint_is_measured_and_shown(cli: CliRunner, tmp_path: Path) -> None:
    arguments = ["evaluate", "builtin", "--steps", "1", "--steps", "2", "--count", "2", "--pictures", "6"]
    done = cli.invoke(app, [*arguments, "--device", "cpu", "--json", "-o", "report"])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(row["steps"], row["task"] == "mean") for row in rows} >= {
        ("ceiling", True),
        (1, True),
        (2, True),
    }
    assert all(0 <= row["low"] <= row["score"] <= row["high"] <= 1 for row in rows)
    ceiling = next(row for row in rows if row["steps"] == "ceiling" and row["task"] == "mean")
    assert ceiling["score"] >= 0.75
    assert len(list((tmp_path / "report" / "pictures" / "2").iterdir())) == 6
    assert "<polyline" in (tmp_path / "report" / "report.html").read_text()
