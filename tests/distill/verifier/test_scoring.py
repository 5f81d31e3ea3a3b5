"""The frozen verifier on pictures of its own composer: passes, refusals, hostile inputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from twinshot_distill.verifier import STRICT, Verifier
from twinshot_distill.verifier.augment import blur
from twinshot_distill.verifier.cases import Cases, make_cases
from twinshot_distill.verifier.freeze import CARD, FOLDER, WEIGHTS
from twinshot_distill.verifier.scoring import to_pictures
from twinshot_distill.world.scenes import TASKS, Item, Scene, Task
from twinshot_distill.world.vocabulary import OBJECTS

SEED = 77
DOG = Scene("single", (Item("dog"),))


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    return Verifier.load()


@pytest.fixture(scope="module")
def cases() -> dict[Task, Cases]:
    return {task: make_cases(task, 24, SEED) for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_true_scenes_pass_and_hard_negatives_do_not(
    verifier: Verifier, cases: dict[Task, Cases], task: Task
) -> None:
    shown = cases[task]
    assert sum(verifier.check(shown.pictures, shown.scenes)) >= 20
    assert sum(verifier.check(shown.pictures, shown.negatives)) <= 1


def test_mild_blur_passes_and_noise_does_not(verifier: Verifier, cases: dict[Task, Cases]) -> None:
    shown = cases["two"]
    soft = blur(to_pictures(shown.pictures), torch.full((24,), 0.8))
    assert sum(verifier.check(soft, shown.scenes)) >= 20
    assert not any(verifier.check(torch.rand(24, 3, 128, 128), shown.scenes))


def test_strict_is_never_looser(verifier: Verifier, cases: dict[Task, Cases]) -> None:
    shown = cases["two"]
    default = verifier.check(shown.pictures, shown.scenes)
    strict = verifier.check(shown.pictures, shown.scenes, STRICT)
    assert all(loose or not tight for loose, tight in zip(default, strict, strict=True))


def test_integer_and_float_pictures_agree(verifier: Verifier, cases: dict[Task, Cases]) -> None:
    shown = cases["colors"]
    floats = shown.pictures.permute(0, 3, 1, 2).float() / 255
    assert verifier.check(shown.pictures, shown.scenes) == verifier.check(floats, shown.scenes)


def test_explain_names_what_it_found(verifier: Verifier, cases: dict[Task, Cases]) -> None:
    shown = cases["single"]
    passed = verifier.check(shown.pictures, shown.scenes).index(True)
    found = verifier.explain(shown.pictures[passed], shown.scenes[passed])
    assert found[0].noun == shown.scenes[passed].items[0].noun
    assert 0 < found[0].x < 1
    assert 0 < found[0].y < 1
    assert found[0].score >= verifier.threshold


def test_fidelity_falls_with_blur_and_with_strangers(verifier: Verifier, cases: dict[Task, Cases]) -> None:
    shown = to_pictures(cases["single"].pictures[:8])
    scenes = cases["single"].scenes[:8]
    clean = verifier.fidelity(shown, scenes)
    soft = verifier.fidelity(blur(shown, torch.full((8,), 2.0)), scenes)
    strange = verifier.fidelity(shown.roll(3, 0), scenes)
    assert sum(clean) > sum(soft) > sum(strange)
    assert sum(clean) / 8 > 0.85
    assert all(0 <= score <= 1.001 for score in clean)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 128, 128, dtype=torch.uint8),
        torch.zeros(1, 3, 128, 128, dtype=torch.uint8),
        torch.zeros(1, 128, 128, 3),
        torch.zeros(1, 4, 128, 128),
        torch.zeros(1, 3, 128, 256),
        torch.zeros(1, 3, 16, 16),
        torch.full((1, 3, 128, 128), 255.0),
        torch.full((1, 3, 128, 128), float("nan")),
        torch.zeros(1, 3, 128, 128, dtype=torch.int64),
    ],
)
def test_hostile_images(verifier: Verifier, images: Tensor) -> None:
    with pytest.raises(ValueError, match="accepted"):
        verifier.check(images, [DOG])


def test_hostile_questions(verifier: Verifier) -> None:
    blank = torch.zeros(1, 3, 128, 128)
    with pytest.raises(ValueError, match="gryphon"):
        verifier.check(blank, [Scene("single", (Item("gryphon"),))])
    with pytest.raises(ValueError, match="1 images for 2 scenes"):
        verifier.check(blank, [DOG, DOG])
    with pytest.raises(ValueError, match=r"threshold 1\.5"):
        verifier.check(blank, [DOG], 1.5)


def test_no_pictures_give_no_answers(verifier: Verifier) -> None:
    assert verifier.check(torch.zeros(0, 3, 128, 128), []) == []
    assert verifier.fidelity(torch.zeros(0, 3, 128, 128), []) == []


def test_a_blank_picture_shows_nothing(verifier: Verifier) -> None:
    blank = torch.full((1, 3, 128, 128), 0.5)
    assert verifier.check(blank, [DOG]) == [False]
    assert verifier.fidelity(blank, [DOG]) == [0.0]


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    shutil.copy(FOLDER / CARD, tmp_path)
    blob = bytearray((FOLDER / WEIGHTS).read_bytes())
    blob[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(blob)
    with pytest.raises(ValueError, match="sha256"):
        Verifier.load(tmp_path)


def test_the_card_fits_the_world() -> None:
    card = json.loads((FOLDER / CARD).read_text())
    assert card["architecture"]["classes"] == [entry.name for entry in OBJECTS]
    assert (FOLDER / WEIGHTS).stat().st_size <= 4_000_000
    assert {"threshold", "twins", "training", "measured", "date", "sha256"} <= card.keys()
