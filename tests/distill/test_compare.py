"""The comparison of training methods: where it starts, how each is served, what is written; the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from twinshot_distill.errors import TrainingError
from twinshot_distill.evaluation.comparison import Scoring, score, serving, sheet_trials
from twinshot_distill.evaluation.comparison_report import (
    MEASURES,
    as_markdown,
    curve,
    picture_sheet,
    write_comparison,
)
from twinshot_distill.miniature.autoencoder import new_autoencoder
from twinshot_distill.miniature.compare import main
from twinshot_distill.miniature.denoiser import Denoiser
from twinshot_distill.miniature.export import export
from twinshot_distill.miniature.methods import METHODS
from twinshot_distill.miniature.start import start_from
from twinshot_engine.schedule import schedule_for


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, flow: Denoiser) -> Path:
    """What a run of miniature.train leaves after its flow stage."""
    folder = tmp_path_factory.mktemp("run")
    save_file(dict(flow.state_dict()), folder / "flow.safetensors")
    torch.manual_seed(1)
    save_file(new_autoencoder().state_dict(), folder / "autoencoder.safetensors")
    return folder


def test_a_start_is_read_from_a_run_and_from_its_export(
    tmp_path: Path, run_folder: Path, flow: Denoiser, tokenizer: PreTrainedTokenizerFast
) -> None:
    autoencoder, denoiser = new_autoencoder(), Denoiser()
    start_from(run_folder, autoencoder, denoiser, tokenizer)
    assert all(torch.equal(denoiser.state_dict()[n], t) for n, t in flow.state_dict().items())
    export(tmp_path, autoencoder, denoiser)
    again, exported = new_autoencoder(), Denoiser()
    start_from(tmp_path, again, exported, tokenizer)
    for before, after in ((autoencoder, again), (denoiser, exported)):
        kept = after.state_dict()
        assert all(torch.equal(kept[n], t.bfloat16().float()) for n, t in before.state_dict().items())


def test_a_start_that_is_none_is_told(
    tmp_path: Path, run_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    models = new_autoencoder(), Denoiser()
    with pytest.raises(TrainingError, match=r"autoencoder.safetensors' cannot be read: .* flow stage"):
        start_from(tmp_path, *models, tokenizer)
    (tmp_path / "autoencoder.safetensors").symlink_to(run_folder / "autoencoder.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "flow.safetensors")
    with pytest.raises(TrainingError, match=r"flow.safetensors' does not fit this trainer's model"):
        start_from(tmp_path, *models, tokenizer)


def test_each_kind_is_served_as_it_was_trained() -> None:
    for steps in (1, 2, 4, 8, 30):
        flow = serving("flow-matching", steps)
        assert schedule_for(flow.steps).takes_guidance
        assert (flow.guidance, flow.passes) == (2.0, 2 * steps)
        for method in ("rcgm", "dmd2", "twinflow"):
            way = serving(method, steps)
            assert (way.guidance, way.passes) == (1.0, steps)
            assert schedule_for(way.steps) == schedule_for(steps)


def score_row(method: str, steps: int, value: float, task: str = "mean") -> dict[str, Any]:
    scores = {"score": value, "strict_score": value / 2, "fidelity_median": value / 4}
    row = {"benchmark": "geneval-style", "method": method, "steps": steps, "combinations": "unseen"}
    return row | {"task": task, "n": 60, "passes": steps} | scores


def cost_row(method: str) -> dict[str, Any]:
    speed = {
        "seconds": 240.0,
        "training_steps": 1000,
        "batch": 512,
        "ms_a_step": 240.0,
        "images_per_s": 2133.3,
    }
    sizes = {"passes_a_row": 6.5, "trained_parameters": 16_500_000, "held_parameters": 67_100_000}
    told = {"gpu": "H100", "seed": 0, "versions": {"torch": "2.11"}, "date": "2026-11-25"}
    row = {"benchmark": "training-cost", "method": method, "networks": "student, teacher", "peak_mib": None}
    return row | speed | sizes | told


def test_tables_hold_means_and_costs() -> None:
    rows = [cost_row("rcgm"), score_row("rcgm", 1, 0.9), score_row("rcgm", 1, 0.1, "two")]
    text = as_markdown(rows)
    cost = "| rcgm | 240 | 1000 | 240.0 | 2133 | 6.50 | 16.5 | 67.1 | not measured | student, teacher |\n"
    assert cost in text
    assert "| rcgm | 1 | 1 | 0.900 | 0.799-0.953 | 0.450 | 0.225 | 60 |\n" in text
    assert "0.100" not in text
    assert "512 rows a step, seed 0, GPU H100, torch 2.11, 2026-11-25." in text
    assert "never GenEval scores" in text
    assert curve([*rows, score_row("dmd2", 4, 0.5)], "unseen", "score").count("<polyline") == 2


def test_what_is_scored_is_kept_and_the_report_written(tmp_path: Path) -> None:
    plan = Scoring((1, 4), ("unseen",), 10, 8, "cpu", "fp32")
    for value, method in enumerate(("rcgm", "dmd2")):
        folder = tmp_path / method
        folder.mkdir()
        (folder / "training.json").write_text(json.dumps(cost_row(method)))
        rows = [score_row(method, steps, 0.5) for steps in (1, 4, 8)]
        (folder / "scores-fp32-10.json").write_text(json.dumps(rows))
        strip = np.full((16, 16 * len(sheet_trials()), 3), 100 + value, np.uint8)
        Image.fromarray(strip).save(folder / "one_step.png")
    assert [row["steps"] for row in score("rcgm", tmp_path / "rcgm", plan)] == [1, 4]
    rows = write_comparison(tmp_path, ["rcgm", "dmd2"], plan)
    assert json.loads((tmp_path / "comparison.json").read_text()) == rows
    assert [row["method"] for row in rows] == ["rcgm", "dmd2", "rcgm", "rcgm", "dmd2", "dmd2"]
    assert (tmp_path / "comparison.md").read_text() == as_markdown(rows)
    for measure in MEASURES:
        drawn = (tmp_path / f"comparison-unseen-{measure}.svg").read_text()
        assert drawn == curve(rows, "unseen", measure)
    assert (tmp_path / "comparison.webp").is_file()


def test_the_sheet_has_a_row_for_each_method() -> None:
    colors = {"one": (200, 0, 0), "two": (0, 0, 200)}
    strips = {name: Image.new("RGB", (48, 16), color) for name, color in colors.items()}
    sheet = picture_sheet(strips, ["a photo of a cow", "a cat", "a dog"])
    assert sheet.width > 3 * (sheet.height - 44) // 2
    row = (sheet.height - 44) // 2
    for place, color in enumerate(colors.values()):
        assert sheet.getpixel((sheet.width - 5, 44 + place * row + row // 2)) == color


def compare(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "twinshot_distill.miniature.compare", str(folder), "--device", "cpu"]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


@pytest.mark.timeout(300)
def test_a_method_is_trained_scored_and_not_trained_again(tmp_path: Path, run_folder: Path) -> None:
    options = ("--rehearsal", "--methods", "dmd2", "--steps", "1", "--start", str(run_folder))
    first = compare(tmp_path, *options)
    assert first.returncode == 0, first.stderr
    done = tmp_path / "compare"
    rows = json.loads((done / "comparison.json").read_text())
    assert [row["benchmark"] for row in rows] == ["training-cost", *["geneval-style"] * 7]
    assert {"method": "dmd2", "training_steps": 4, "batch": 4}.items() <= rows[0].items()
    assert {"method": "dmd2", "steps": 1, "combinations": "unseen", "passes": 1}.items() <= rows[1].items()
    assert not list((done / "dmd2" / "state").glob("*"))
    again = compare(tmp_path, *options)
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_rehearsal_runs_all_methods(tmp_path: Path, run_folder: Path) -> None:
    for name in ("autoencoder", "flow"):
        (tmp_path / f"{name}.safetensors").symlink_to(run_folder / f"{name}.safetensors")
    done = compare(tmp_path, "--rehearsal")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "compare" / "comparison.json").read_text())
    assert {row["method"] for row in rows} == set(METHODS)
    assert len(rows) == 4 * (1 + 2 * 7)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--methods", "gan"], "'gan' is not one of"),
        (["--set", "dmd2.batch=3"], "must be the same for all methods"),
        (["--combinations", "train"], "combinations 'train'"),
        (["--steps", "0"], "0 steps are not supported"),
        (["--rehearsal"], "is no folder: give a run"),
    ],
)
def test_wrong_options_are_one_sentence_and_leave_nothing(
    tmp_path: Path, options: list[str], told: str
) -> None:
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, [str(tmp_path / "nowhere"), "--device", "cpu", *options])
    assert done.exit_code == 2
    assert told in " ".join(done.stderr.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_training_never_reads_the_judge() -> None:
    program = (
        "import sys, twinshot_distill.miniature.compare\n"
        "found = [name for name in sys.modules if name.startswith('twinshot_distill.verifier')]\n"
        "sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
