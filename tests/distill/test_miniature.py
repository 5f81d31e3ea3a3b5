"""The shipped miniature: it follows its prompts at one step, and is what its card says."""

import json
from importlib.resources import files
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from twinshot_distill.evaluate import draw, evaluate, judge
from twinshot_distill.evaluation.trials import trials
from twinshot_distill.miniature.autoencoder import structure_loss
from twinshot_distill.verifier.scoring import Verifier
from twinshot_distill.world.scenes import TASKS, is_unseen
from twinshot_distill.world.vocabulary import OBJECTS
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine

FOLDER = Path(str(files("twinshot_engine"))) / "builtin" / "miniature"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(EngineConfig(device="cpu", precision="fp32", max_batch=6))


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    return Verifier.load()


def test_weights_stay_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 44_000_000


def test_card_and_vocabulary_are_true(engine: Engine) -> None:
    objects = engine.info.vocabulary["objects"]
    assert set(objects) <= {entry.name for entry in OBJECTS}
    card = json.loads((FOLDER / "twinshot.json").read_text("utf-8"))
    assert (engine.info.vocabulary, engine.info.near) == (card["vocabulary"], card["near"])
    readme = (FOLDER / "README.md").read_text("utf-8")
    assert f"{len(objects)} objects" in readme
    assert "SCORES_HERE" not in readme


def test_tokenizer_and_text_encoder_agree() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(FOLDER / "tokenizer")
    config = json.loads((FOLDER / "text_encoder" / "config.json").read_text())
    assert len(tokenizer) == config["vocab_size"]


def test_one_step_follows_prompts_of_combinations_never_trained(engine: Engine, verifier: Verifier) -> None:
    """Four a task; the full measurement has 300. At the shipped .99 fewer than 19 of 24 is a broken model."""
    asked = [trial for task in TASKS for trial in trials(task, "unseen", 4, engine.info.vocabulary)]
    assert all(is_unseen(trial.scene) for trial in asked if trial.scene.task != "single")
    verdicts = judge(verifier, torch.from_numpy(np.concatenate(list(draw(engine, asked, 1)))), asked)
    assert sum(verdicts.passed) >= 19
    assert sum(verdicts.shuffled) <= 3
    assert median(verdicts.fidelity) > 0.93


def test_evaluation_rows_are_flat_and_complete(engine: Engine, verifier: Verifier) -> None:
    rows = evaluate(engine, verifier, method="twinflow", steps=1, split="seen", count=1)
    assert [row["task"] for row in rows] == [*TASKS, "mean"]
    keys = {"benchmark", "method", "steps", "combinations", "task", "score", "strict_score", "n"}
    assert all(keys <= row.keys() for row in rows)
    assert rows[-1]["n"] == 6


def test_structure_counts_faint_details_as_much_as_strong_ones() -> None:
    noise = torch.Generator().manual_seed(0)
    strong = torch.rand(2, 3, 32, 32, generator=noise)
    faint = 0.5 + 0.3 * strong
    flat = torch.full_like(strong, 0.5)
    assert structure_loss(strong, strong) < 1e-5
    assert structure_loss(flat, faint) == pytest.approx(float(structure_loss(flat, strong)), abs=0.1)
    window, other = (x[0, 0, :16, :16].double().numpy() for x in (strong, strong.flip(-1)))
    small = (4 / 255) ** 2
    likeness = (2 * np.cov(window.ravel(), other.ravel(), bias=True)[0, 1] + small) / (
        window.var() + other.var() + small
    )
    one = structure_loss(strong[:1, :1, :16, :16], strong.flip(-1)[:1, :1, :16, :16])
    assert float(one) == pytest.approx(1 - likeness, abs=1e-4)
