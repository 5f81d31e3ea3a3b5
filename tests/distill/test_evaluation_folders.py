"""Output folders of evaluations: never half a picture, never two settings, and what was measured stays."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from grey_engine import DRAWING, SeedEngine, metadata, quiet
from PIL import Image

from twinshot_distill.errors import TrainingError
from twinshot_distill.evaluation.keeping import KeptRows, identity
from twinshot_distill.evaluation.official import write_dpg, write_geneval


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return metadata(tmp_path / "m.jsonl", ["a photo of a cow", "a photo of two cows"])


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
            write_geneval(SeedEngine(), source, out, DRAWING, quiet)  # type: ignore[arg-type]
    left = sorted(str(path.relative_to(out)) for path in out.glob("*/samples/*"))
    assert left == [*(f"00000/samples/{k:04d}.png" for k in range(4)), "00001/samples/0000.png"]
    assert write_geneval(SeedEngine(), source, out, DRAWING, quiet) == 1  # type: ignore[arg-type]
    for path in out.glob("*/samples/*"):
        with Image.open(path) as picture:
            picture.load()


def test_a_full_disk_leaves_no_half_sheet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source, out = tmp_path / "p.jsonl", tmp_path / "out"
    source.write_text('{"id": "a", "prompt": "a cow"}\n{"id": "b", "prompt": "a dog"}\n')
    with monkeypatch.context() as patch:
        fill_the_disk(patch, after=1)
        with pytest.raises(TrainingError, match="No space left"):
            write_dpg(SeedEngine(), source, out, DRAWING, quiet)  # type: ignore[arg-type]
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
        write_geneval(SeedEngine(), metadata(source, ["a cat"]), out, DRAWING, quiet)  # type: ignore[arg-type]
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
    assert kept.row({"task": "two"}, lambda: {"task": "two", "score": 0.1}) == {"task": "two", "score": 0.1}
    again = KeptRows(path, asked)
    assert again.before == 1
    assert again.row({"task": "two"}, dict) == {"task": "two", "score": 0.1}, "it was not measured again"
    assert again.row({"task": "one"}, lambda: {"task": "one"}) == {"task": "one"}
    assert KeptRows(path, asked).before == 2
    assert KeptRows(path, {"steps": (4,)}).before == 0
    for damaged in ("{", "[]", '{"asked": {"steps": [1, 2]}}'):
        path.write_text(damaged)
        assert KeptRows(path, asked).before == 0
    again.forget()
    assert not list(tmp_path.iterdir())
