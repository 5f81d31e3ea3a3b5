"""Output folders of evaluations: never half a picture, never two settings, and what was measured stays."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from grey_engine import DRAWING, SeedEngine, metadata, quiet
from PIL import Image

from twinshot_distill.errors import TrainingError
from twinshot_distill.evaluation import builtin
from twinshot_distill.evaluation.builtin import Judges, Plan, measure
from twinshot_distill.evaluation.keeping import KeptRows, identity
from twinshot_distill.evaluation.official import write_dpg, write_geneval
from twinshot_distill.verifier.scoring import Verifier
from twinshot_distill.world.scenes import TASKS
from twinshot_distill.world.vocabulary import OBJECTS


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return metadata(tmp_path / "m.jsonl", ["a photo of a cow", "a photo of two cows"])


def grey() -> Any:
    """Stands for an Engine."""
    return SeedEngine()


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """From some picture on, a save leaves half of it and fails."""
    save, saved = Image.Image.save, []

    def half(picture: Image.Image, path: Any, *rest: Any) -> None:
        save(picture, path, *rest)
        saved.append(path)
        if len(saved) > after:
            os.truncate(path, Path(path).stat().st_size // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", half)


def test_a_full_disk_is_told_and_leaves_no_half_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fill_the_disk(patch, after=5)
        with pytest.raises(TrainingError, match=r"cannot be written to '.*out': .*No space left"):
            write_geneval(grey(), source, out, DRAWING, quiet)
    left = sorted(str(path.relative_to(out)) for path in out.glob("*/samples/*"))
    assert left == [*(f"00000/samples/{k:04d}.png" for k in range(4)), "00001/samples/0000.png"]
    assert write_geneval(grey(), source, out, DRAWING, quiet) == 1
    for path in out.glob("*/samples/*"):
        with Image.open(path) as picture:
            picture.load()


def test_a_full_disk_leaves_no_half_sheet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source, out = tmp_path / "p.jsonl", tmp_path / "out"
    source.write_text('{"id": "a", "prompt": "a cow"}\n{"id": "b", "prompt": "a dog"}\n')
    with monkeypatch.context() as patch:
        fill_the_disk(patch, after=1)
        with pytest.raises(TrainingError, match="No space left"):
            write_dpg(grey(), source, out, DRAWING, quiet)
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "drawing.json"]


def test_a_folder_that_cannot_be_made_is_told_before_the_first_picture(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").write_text("a file")
    engine: Any = SeedEngine()
    with pytest.raises(TrainingError, match="cannot be written"):
        write_geneval(engine, source, tmp_path / "out", DRAWING, quiet)
    assert not engine.asked


def test_pictures_of_other_settings_are_not_mixed(tmp_path: Path, source: Path) -> None:
    engine: Any = SeedEngine()
    out = tmp_path / "out"
    write_geneval(engine, source, out, DRAWING, quiet)
    engine.asked.clear()
    for change, words in (
        ({"steps": 4}, r"'.*out' holds pictures of other settings: steps 2, not 4\. Name another"),
        ({"width": 32, "seed": 8}, "width 16, not 32; seed 7, not 8"),
    ):
        with pytest.raises(TrainingError, match=words):
            write_geneval(engine, source, out, replace(DRAWING, **change), quiet)
    engine.info = SimpleNamespace(**{**vars(engine.info), "checkpoint": "org/other", "precision": "bf16"})
    with pytest.raises(TrainingError, match="checkpoint org/grey, not org/other; precision fp32, not bf16"):
        write_geneval(engine, source, out, DRAWING, quiet)
    with pytest.raises(TrainingError, match=r"prompts \w+, not \w+"):
        write_geneval(grey(), metadata(source, ["a cat"]), out, DRAWING, quiet)
    assert not engine.asked


def test_pictures_of_unknown_settings_are_not_added_to(tmp_path: Path, source: Path) -> None:
    engine: Any = SeedEngine()
    write_geneval(engine, source, tmp_path / "out", DRAWING, quiet)
    kept = tmp_path / "out" / "drawing.json"
    assert json.loads(kept.read_text())["steps"] == 2
    kept.write_text("{")
    with pytest.raises(TrainingError, match=r"drawing\.json' is damaged"):
        write_geneval(engine, source, tmp_path / "out", DRAWING, quiet)
    kept.unlink()
    with pytest.raises(TrainingError, match=r"holds pictures, but no drawing\.json"):
        write_geneval(engine, source, tmp_path / "out", DRAWING, quiet)


def test_a_checkpoint_trained_anew_is_another_one(tmp_path: Path) -> None:
    weights = tmp_path / "transformer" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"1")
    info: Any = SimpleNamespace(
        checkpoint=str(tmp_path), revision=None, precision="bf16", text_precision="bf16"
    )
    first = identity(info)
    assert first["checkpoint"] == str(tmp_path.resolve())
    assert first == identity(info)
    os.utime(weights, (1, 1))
    os.utime(tmp_path, (1, 1))
    assert identity(info)["revision"] == "1970-01-01T00:00:01+00:00" != first["revision"]


def test_rows_are_kept_as_they_come(tmp_path: Path) -> None:
    path, asked = tmp_path / "measuring.json", {"steps": (1, 2)}
    kept = KeptRows(path, asked)
    assert kept.before == 0
    assert kept.row({"task": "two"}, lambda facts: facts | {"score": 0.1}) == {"task": "two", "score": 0.1}
    again = KeptRows(path, asked)
    assert again.before == 1
    assert again.row({"task": "two"}, dict) == {"task": "two", "score": 0.1}, "it was not measured again"
    assert again.row({"task": "one"}, dict) == {"task": "one"}
    assert KeptRows(path, asked).before == 2
    assert KeptRows(path, {"steps": (4,)}).before == 0
    for damaged in ("{", "[]", '{"asked": {"steps": [1, 2]}}'):
        path.write_text(damaged)
        assert KeptRows(path, asked).before == 0
    again.forget()
    assert not list(tmp_path.iterdir())


class LongEngine(SeedEngine):
    """Takes prompts of any length and draws something for any seed at the model's own size."""

    def generate(self, requests: Any) -> Any:
        self.asked += requests
        return SimpleNamespace(
            images=np.stack([np.full((8, 8, 3), r.seed % 251, np.uint8) for r in requests])
        )


class Judging:
    """Passes dark pictures; stops for good at the picture after `left`."""

    threshold = 0.2

    def __init__(self, left: int = 10**6) -> None:
        self.left = left

    def check(self, images: torch.Tensor, scenes: Any, threshold: float | None = None) -> list[bool]:
        if self.left < len(scenes):
            raise KeyboardInterrupt
        self.left -= len(scenes)
        return [bool(image.float().mean() < 128) for image in images]

    def fidelity(self, images: Any, scenes: Any) -> list[float]:
        return [0.5] * len(scenes)


def test_an_interrupted_measurement_goes_on_to_the_same_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(builtin, "ZImageEncoders", lambda *_: None)
    monkeypatch.setattr(builtin, "find_checkpoint", Path)
    monkeypatch.setattr(builtin, "Composer", lambda *_, **__: None)
    monkeypatch.setattr(builtin, "_round_trip", lambda *_: torch.zeros(1, 3, 8, 8))
    world = {"objects": [entry.name for entry in OBJECTS], "colors": ["red", "blue"], "scenes": []}
    plan = Plan((1, 2), count=2, diversity_prompts=2, diversity_seeds=2, pictures=6)

    def run(folder: str, judging: Judging) -> tuple[Any, SeedEngine]:
        engine: Any = LongEngine()
        engine.info = SimpleNamespace(**{**vars(engine.info), "vocabulary": world})
        judges = Judges(cast(Verifier, judging))
        kept = KeptRows(tmp_path / folder / "measuring.json", {"count": 2})
        return measure(engine, judges, plan, "builtin", kept, quiet), engine

    with pytest.raises(KeyboardInterrupt):
        run("a", Judging(left=3 * 2 * 8))
    resumed, engine = run("a", Judging())
    whole, all_at_once = run("b", Judging())
    assert resumed.rows == whole.rows
    assert [(r["task"], r["steps"]) for r in whole.rows[:7]] == [(t, "ceiling") for t in (*TASKS, "mean")]
    assert len(all_at_once.asked) - len(engine.asked) == 2 * 2, "two tasks were drawn before, ceiling aside"
    np.testing.assert_array_equal(resumed.pictures[2], whole.pictures[2])


def test_rows_that_cannot_be_kept_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("a file")
    with pytest.raises(TrainingError, match=r"What is measured cannot be written to '.*report'"):
        KeptRows(tmp_path / "report" / "measuring.json", {})
