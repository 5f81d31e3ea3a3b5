"""The verifier's composer, targets and decoding: labels where objects are, faults without labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from twinshot_distill.verifier.augment import augment
from twinshot_distill.verifier.backgrounds import background
from twinshot_distill.verifier.bank import SpriteBank, find_twins
from twinshot_distill.verifier.composer import BackgroundPool, training_picture
from twinshot_distill.verifier.detections import decode
from twinshot_distill.verifier.faults import alpha_of, erase
from twinshot_distill.verifier.layouts import sample
from twinshot_distill.verifier.loss import color_choices, detection_loss, make_targets
from twinshot_distill.verifier.model import COLOR_NAMES, GRID, Detector, Maps
from twinshot_distill.world.scenes import TASKS
from twinshot_distill.world.vocabulary import BACKGROUNDS, OBJECTS

NAMES = [entry.name for entry in OBJECTS]


@pytest.mark.parametrize("name", [*BACKGROUNDS, "wild"])
def test_every_background_is_drawn(name: str) -> None:
    drawn = background(np.random.default_rng(0), 48, name)
    assert drawn.shape == (48, 48, 3)
    assert drawn.dtype == np.uint8


def test_an_unknown_background_is_refused() -> None:
    with pytest.raises(ValueError, match="'volcano'"):
        background(np.random.default_rng(0), 48, "volcano")


def test_the_same_seed_gives_the_same_pictures() -> None:
    def draw() -> tuple[np.ndarray, np.ndarray]:
        pool = BackgroundPool(3, 4, 64, 0.2)
        return training_picture(np.random.default_rng(1), SpriteBank(), pool, 64, 0.1)

    first, second = draw(), draw()
    assert (first[0] == second[0]).all()
    assert (first[1] == second[1]).all()


def test_faults_leave_no_labels() -> None:
    pool, rng = BackgroundPool(3, 4, 64, 0.2), np.random.default_rng(1)
    labels = [training_picture(rng, SpriteBank(), pool, 64, 1.0)[1] for _ in range(5)]
    assert all((label[:, 0] == -1).all() for label in labels)


@pytest.mark.parametrize("task", TASKS)
def test_scenes_and_places_agree(task: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(40):
        scene, places = sample(rng, task)  # type: ignore[arg-type]
        assert [NAMES[p.index] for p in places] == [item.noun for item in scene.items]
        assert all(0 < p.x < 1 and 0 < p.y < 1 and p.size < 0.7 for p in places)
        if scene.relation == "left of":
            assert places[0].x < places[1].x


def test_erasing_takes_the_share_it_was_asked_for() -> None:
    sprite = SpriteBank().image(0, None, 80)
    left = alpha_of(erase(np.random.default_rng(0), sprite, 0.5)).sum() / alpha_of(sprite).sum()
    assert left == pytest.approx(0.5, abs=0.1)


def test_twins_are_the_colours_one_would_name() -> None:
    twins = find_twins(SpriteBank())
    assert twins["apple"] == "red"
    assert twins["banana"] == "yellow"
    assert "zebra" not in twins


def test_perfect_maps_decode_to_their_labels() -> None:
    labels = torch.full((1, 5, 5), -1.0)
    labels[0, 0] = torch.tensor([3, 2, 0.31, 0.62, 0.3])
    labels[0, 1] = torch.tensor([3, 4, 0.71, 0.62, 0.3])
    targets = make_targets(labels)
    color, geometry = torch.zeros(1, len(COLOR_NAMES), GRID, GRID), torch.zeros(1, 3, GRID, GRID)
    for (x, y), label in zip(targets.cells.tolist(), targets.labels, strict=True):
        color[0, int(label[1]), y, x] = 9
        geometry[0, :, y, x] = torch.tensor(
            [float(label[2]) * GRID - x - 0.5, float(label[3]) * GRID - y - 0.5, float(label[4].log())]
        )
    found = decode(Maps(torch.logit(targets.heat, 1e-4), color, geometry), NAMES, 0.5)[0]
    assert sorted((d.color, round(d.x, 2), round(d.size, 2)) for d in found) == [
        ("blue", 0.71, 0.3),
        ("yellow", 0.31, 0.3),
    ]


def test_augmenting_and_learning_run_on_an_empty_batch_of_labels() -> None:
    pictures, labels = torch.rand(4, 3, 128, 128), torch.full((4, 5, 5), -1.0)
    pictures, labels = augment(pictures, labels, torch.Generator().manual_seed(0))
    loss = detection_loss(Detector(len(NAMES), 16)(pictures), make_targets(labels), color_choices({}))
    assert pictures.shape == (4, 3, 128, 128)
    assert torch.isfinite(loss)
