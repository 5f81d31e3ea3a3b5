"""The comparison of training methods: one start, equal terms, resumed, scored as each kind is served."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from twinshot_distill.checkpointing import Keeper
from twinshot_distill.dmd import DmdObjective
from twinshot_distill.errors import TrainingError
from twinshot_distill.evaluation.comparison import Scoring, score, serving, sheet_trials
from twinshot_distill.evaluation.comparison_report import as_markdown, curve, picture_sheet, write_comparison
from twinshot_distill.journal import Journal
from twinshot_distill.loop import Length, Loop, LoopSettings
from twinshot_distill.miniature.autoencoder import new_autoencoder
from twinshot_distill.miniature.compare import main
from twinshot_distill.miniature.configuration import Run, changed
from twinshot_distill.miniature.dataset import SHORT, Captions
from twinshot_distill.miniature.denoiser import Condition, Denoiser
from twinshot_distill.miniature.dmd import Critic, DmdSettings, DmdTrainee
from twinshot_distill.miniature.export import export
from twinshot_distill.miniature.methods import METHODS, Comparison, find_methods
from twinshot_distill.miniature.start import check_tokens, read_start
from twinshot_distill.miniature.tokenizer import build_tokenizer
from twinshot_distill.optimizer import Optimizer, OptimizerSettings
from twinshot_distill.stepping import CapturedSteps, EagerSteps, Steps
from twinshot_engine.schedule import schedule_for


class FixedPool:
    """Noise with one caption for all."""

    def __init__(self, device: str = "cpu") -> None:
        self.device, self.position = device, 0

    def renew(self, step: int) -> None:
        del step
        self.position += 1

    def refill(self, position: int) -> None:
        self.position = position

    def sample(self, count: int, width: int) -> tuple[Tensor, Captions]:
        tokens = torch.full((count, width), 5, dtype=torch.int32, device=self.device)
        latents = torch.randn(count, 8, 32, 32, device=self.device)
        return latents, Captions(tokens, torch.full((count,), 20, device=self.device))


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="module")
def flow() -> Denoiser:
    """A fresh model predicts zero; a little noise makes every weight matter."""
    torch.manual_seed(0)
    model = Denoiser()
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, flow: Denoiser) -> Path:
    """What a run of miniature.train leaves after its flow stage."""
    folder = tmp_path_factory.mktemp("run")
    save_file(dict(flow.state_dict()), folder / "flow.safetensors")
    torch.manual_seed(1)
    save_file(new_autoencoder().state_dict(), folder / "autoencoder.safetensors")
    return folder


def words(rows: int) -> Condition:
    return Condition(torch.randn(rows, SHORT, 192), torch.full((rows,), 20))


def test_the_critic_reads_the_first_layers_of_the_fake_network(flow: Denoiser) -> None:
    torch.manual_seed(0)
    fake = flow.transformer
    critic = Critic(fake, 0.5)
    mine = {id(p) for p in critic.parameters()}
    assert not mine & {id(p) for p in fake.parameters()}
    x_t, t, given = torch.randn(2, 8, 32, 32), torch.tensor([0.2, 0.9]), words(2)
    with torch.no_grad():
        logits = critic(x_t, t, given)
        moved = []
        for layer in (3, 4):
            weight = fake.layers[layer].get_parameter("feed_forward.w2.weight")
            weight.mul_(1.5)
            moved.append(not torch.equal(critic(x_t, t, given), logits))
            weight.div_(1.5)
    assert logits.shape == (2,)
    assert moved == [True, False]


def dmd_loop(
    folder: Path, flow: Denoiser, tokenizer: PreTrainedTokenizerFast, steps: int
) -> tuple[Loop, DmdTrainee]:
    torch.manual_seed(0)
    objective = DmdObjective(fake_updates=1)
    trainee = DmdTrainee(flow, FixedPool(), tokenizer, DmdSettings(batch=1, objective=objective))
    folder.mkdir(exist_ok=True)
    loop = Loop(
        trainee,
        Optimizer(trainee.parameters(), OptimizerSettings(learning_rate=1e-3)),
        LoopSettings(Length(steps), seed=3),
        Keeper(folder / "state", {"length": steps}),
        Journal(folder, "dmd2", 1),
    )
    return loop, trainee


def test_dmd2_resumes_to_the_bit_and_averages_its_generator(
    tmp_path: Path, flow: Denoiser, tokenizer: PreTrainedTokenizerFast
) -> None:
    whole, straight = dmd_loop(tmp_path / "a", flow, tokenizer, 3)
    start = {name: tensor.detach().clone() for name, tensor in straight.tensors().items()}
    whole.run()
    dmd_loop(tmp_path / "b", flow, tokenizer, 2)[0].run()
    torch.manual_seed(99)
    second, resumed = dmd_loop(tmp_path / "b", flow, tokenizer, 3)
    second.run()
    ended = straight.tensors()
    assert all(torch.equal(tensor, ended[name]) for name, tensor in resumed.tensors().items())
    assert resumed.numbers() == straight.numbers()
    moved = {name.split(".")[0] for name, tensor in ended.items() if not torch.equal(tensor, start[name])}
    assert moved == {"generator", "fake", "critic", "average"}
    assert all(
        torch.equal(a, b)
        for a, b in zip(straight.real.parameters(), flow.transformer.parameters(), strict=True)
    )


@pytest.mark.gpu
def test_dmd2s_recorded_steps_train_as_eager_ones_do(
    flow: Denoiser, tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = DmdSettings(batch=8, long_share=0.0, objective=DmdObjective(fake_updates=1))

    def told(steps_of: Callable[[DmdTrainee, Optimizer], Steps]) -> list[float]:
        torch.manual_seed(0)
        trainee = DmdTrainee(deepcopy(flow).cuda(), FixedPool("cuda"), tokenizer, settings)
        capturable = steps_of is CapturedSteps
        optimizer = Optimizer(
            trainee.parameters(), OptimizerSettings(learning_rate=1e-5), capturable=capturable
        )
        steps, values = steps_of(trainee, optimizer), []
        for step in range(14):
            torch.manual_seed(step)
            terms, norm = steps.gradients(step)
            values += [float(term) for term in terms.values()] + [float(norm)]
            steps.move(1e-5)
        return values

    assert told(CapturedSteps) == pytest.approx(told(EagerSteps), rel=0.05)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_counts_what_it_holds(
    name: str, flow: Denoiser, tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = changed(Comparison.of(Run(), 1.0), [])
    method = METHODS[name](flow, FixedPool(), tokenizer, settings)
    text, transformer = (sum(p.numel() for p in part.parameters()) for part in (flow.text, flow.transformer))
    sizes = method.sizes()
    critic = sum(p.numel() for p in method.networks["critic"].parameters()) if name == "dmd2" else 0
    trained = {"flow-matching": text + transformer, "dmd2": 2 * transformer + critic}
    held = {"flow-matching": 2 * (text + transformer)}
    assert sizes["trained_parameters"] == trained.get(name, transformer)
    assert sizes["held_parameters"] == held.get(name, 4 * transformer + text + critic)
    assert sizes["networks"].count(",") == len(method.networks) - 1
    ours = {p.data_ptr() for p in method.trained.values()}
    assert not ours & {p.data_ptr() for p in flow.parameters()}


def test_methods_train_on_equal_terms() -> None:
    settings = Comparison.of(changed(Run(), ["twinflow.batch=64", "seed=7"]), 30.0)
    stages = (settings.flow, settings.rcgm, settings.dmd2, settings.twinflow)
    assert {(stage.seconds, stage.batch, stage.long_share) for stage in stages} == {(30.0, 64, 0.0)}
    assert settings.run.seed == 7
    assert settings.rcgm.objective.groups.adv == 0
    assert not settings.rcgm.objective.rectifies
    assert settings.rcgm.objective.order == 2
    assert settings.twinflow.objective == Run().twinflow.objective
    assert settings.dmd2.objective.guidance == settings.twinflow.objective.enhanced_ratio
    with pytest.raises(ValueError, match=r"must be the same for all methods"):
        changed(settings, ["dmd2.batch=32"])


def test_methods_are_named_or_refused() -> None:
    assert find_methods("all") == ["flow-matching", "rcgm", "dmd2", "twinflow"]
    assert find_methods("dmd2, rcgm") == ["dmd2", "rcgm"]
    with pytest.raises(ValueError, match="'ddpm' is not one of flow-matching, rcgm, dmd2, twinflow, or all"):
        find_methods("rcgm,ddpm")


def test_a_start_is_read_from_a_run_and_from_its_export(
    tmp_path: Path, run_folder: Path, flow: Denoiser
) -> None:
    autoencoder, denoiser = read_start(run_folder)
    assert all(torch.equal(denoiser.state_dict()[n], t) for n, t in flow.state_dict().items())
    export(tmp_path, autoencoder, denoiser)
    again, exported = read_start(tmp_path)
    for before, after in ((autoencoder, again), (denoiser, exported)):
        kept = after.state_dict()
        assert all(torch.equal(kept[n], t.bfloat16().float()) for n, t in before.state_dict().items())
    assert {p.dtype for p in exported.parameters()} == {torch.float32}


def test_a_start_that_is_none_is_told(tmp_path: Path, run_folder: Path) -> None:
    with pytest.raises(TrainingError, match=r"autoencoder.safetensors' does not exist: give a folder in whi"):
        read_start(tmp_path)
    (tmp_path / "autoencoder.safetensors").write_bytes((run_folder / "autoencoder.safetensors").read_bytes())
    save_file({"x": torch.zeros(1)}, tmp_path / "flow.safetensors")
    with pytest.raises(TrainingError, match=r"flow.safetensors' does not fit this miniature: "):
        read_start(tmp_path)
    (tmp_path / "flow.safetensors").write_bytes(b"no tensors")
    with pytest.raises(TrainingError, match=r"flow.safetensors' does not fit this miniature: "):
        read_start(tmp_path)


def test_a_start_of_another_world_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    check_tokens(tmp_path, tokenizer_folder)
    own = tmp_path / "tokenizer" / "tokenizer.json"
    own.parent.mkdir()
    own.write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    check_tokens(tmp_path, tokenizer_folder)
    own.write_text("{}")
    with pytest.raises(TrainingError, match="is not the tokenizer of this world"):
        check_tokens(tmp_path, tokenizer_folder)


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
    assert curve([*rows, score_row("dmd2", 4, 0.5)], "unseen").count("<polyline") == 2


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
    assert (tmp_path / "comparison-unseen.svg").read_text() == curve(rows, "unseen")
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
        (["--rehearsal"], "does not exist: give a folder"),
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
