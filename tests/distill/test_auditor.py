"""The second judge: labels of cells, cells that become objects, verdicts, and a training that runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from rich.progress import Progress
from torch import Tensor, nn

from twinshot_distill.auditor import freeze as freezing
from twinshot_distill.auditor.data import IGNORED, NOTHING, Examples, PicturePool, crowds, label, scenes
from twinshot_distill.auditor.freeze import calibrate, freeze
from twinshot_distill.auditor.judge import CARD, WEIGHTS, Auditor, connected, regions
from twinshot_distill.auditor.model import CELLS, EMPTY_WEIGHT, OWN_COLOR, SIDE, CellLabeller, Labels
from twinshot_distill.auditor.train import loss_of, train
from twinshot_distill.world.composer import Composer
from twinshot_distill.world.scenes import Item, Scene
from twinshot_distill.world.sprites import VARIANTS, variant_index
from twinshot_distill.world.vocabulary import COLORS, INDEX, OBJECTS

NAMES = tuple(entry.name for entry in OBJECTS)
RED = list(COLORS).index("red")


def labels(*blobs: tuple[str, slice, slice, int], sure: float = 9.0) -> Labels:
    """Logits of a picture of nothing but these: a name, rows, columns and a colour's label."""
    kind = torch.zeros(1, NOTHING + 1, CELLS, CELLS)
    kind[:, NOTHING] = sure
    color = torch.zeros(1, OWN_COLOR + 1, CELLS, CELLS)
    for name, rows, columns, painted in blobs:
        kind[:, NOTHING, rows, columns] = 0
        kind[:, INDEX[name], rows, columns] = sure
        color[:, painted, rows, columns] = sure
    return Labels(kind, color)


def test_cells_of_an_object_are_its_middle_and_its_rim_is_left_open() -> None:
    variant = variant_index("heart", "red")
    kinds, colors = label(
        torch.tensor([[variant, -1, -1, -1]]), torch.full((1, 4, 2), 0.5), torch.full((1, 4), 0.5)
    )
    y, x = torch.meshgrid(*[(torch.arange(CELLS) + 0.5) / CELLS - 0.5] * 2, indexing="ij")
    distance = torch.hypot(y, x) / 0.5
    expected = torch.where(distance < 0.25, INDEX["heart"], torch.where(distance < 0.34, IGNORED, NOTHING))
    assert torch.equal(kinds[0], expected)
    assert torch.equal(colors[0] == RED, distance < 0.25)
    assert (colors[0] == IGNORED).sum() == CELLS**2 - (distance < 0.25).sum()


def test_what_stands_in_front_hides_what_is_behind() -> None:
    behind, before = INDEX["dog"], VARIANTS.index((INDEX["cat"], "blue"))
    variants = torch.tensor([[behind, before, -1, -1]])
    kinds, colors = label(variants, torch.full((1, 4, 2), 0.4), torch.full((1, 4), 0.4))
    assert INDEX["dog"] not in kinds
    assert INDEX["cat"] in kinds
    assert set(colors.unique().tolist()) == {IGNORED, list(COLORS).index("blue")}
    nothing = label(torch.full((1, 4), -1), torch.zeros(1, 4, 2), torch.zeros(1, 4))
    assert (nothing[0] == NOTHING).all()


def test_regions_are_what_touches() -> None:
    mask = torch.zeros(CELLS, CELLS, dtype=torch.bool)
    mask[0, 0] = mask[1, 1] = mask[2, 0] = True  # corners touch
    mask[0, 3:7] = mask[1:5, 6] = True  # an L, one free column away
    mask[15, 15] = True
    found = connected(mask)
    assert sorted(int(region.sum()) for region in found) == [1, 3, 8]
    assert torch.equal(torch.stack(found).sum(0), mask.int())
    assert connected(torch.zeros(CELLS, CELLS, dtype=torch.bool)) == []
    assert len(connected(torch.ones(CELLS, CELLS, dtype=torch.bool))) == 1


def test_regions_become_objects_with_place_colour_and_score() -> None:
    told = labels(
        ("car", slice(2, 6), slice(0, 4), RED),
        ("car", slice(2, 6), slice(8, 12), OWN_COLOR),
        ("owl", slice(12, 13), slice(12, 13), RED),
    )
    (found,) = regions(told, NAMES, 0.5)
    assert [(each.noun, each.color) for each in found] == [("car", "red"), ("car", "natural")] or [
        (each.noun, each.color) for each in found
    ] == [("car", "natural"), ("car", "red")]
    red = next(each for each in found if each.color == "red")
    assert (red.x, red.y) == (pytest.approx(2 / CELLS), pytest.approx(4 / CELLS))
    assert red.size == pytest.approx(4 / CELLS)
    # Nothing's logit is 0 there, and its odds are put right.
    sure = math.exp(9) / (math.exp(9) + NOTHING - 1 + 1 / EMPTY_WEIGHT)
    assert red.score == pytest.approx(sure, abs=1e-4)
    assert regions(told, NAMES, sure + 0.001) == [[]]


def test_cells_that_may_as_well_be_empty_are_empty() -> None:
    told = labels(("car", slice(2, 6), slice(0, 4), RED))
    even = told.kind.clone()
    even[:, NOTHING, 2:6, 0:4] = 9.0 + math.log(EMPTY_WEIGHT) + 0.1  # as an undertrained class would have it
    assert regions(Labels(even, told.color), NAMES, 0.2) == [[]]
    even[:, NOTHING, 2:6, 0:4] -= 0.2
    assert [each.noun for each in regions(Labels(even, told.color), NAMES, 0.2)[0]] == ["car"]


class Seeing(nn.Module):
    """A network that sees the same in every picture."""

    def __init__(self, told: Labels) -> None:
        super().__init__()
        self.told = told

    def forward(self, pictures: Tensor) -> Labels:
        assert pictures.shape[1:] == (3, SIDE, SIDE)
        return Labels(*(part.expand(len(pictures), -1, -1, -1) for part in self.told))


def test_verdicts_follow_the_rules_of_the_tasks() -> None:
    left, right = slice(1, 5), slice(10, 14)
    told = labels(("car", slice(6, 10), left, RED), ("tree", slice(6, 10), right, OWN_COLOR))
    auditor = Auditor(Seeing(told), NAMES, {"tree": "green"}, 0.5)  # type: ignore[arg-type]
    car, tree = Item("car"), Item("tree")
    asked = {
        Scene("single", (car,)): True,
        Scene("single", (Item("owl"),)): False,
        Scene("two", (tree, car)): True,
        Scene("count", (car, car)): False,
        Scene("position", (car, tree), "left of"): True,
        Scene("position", (car, tree), "right of"): False,
        Scene("colors", (Item("car", "red"),)): True,
        Scene("colors", (Item("car", "blue"),)): False,
        Scene("attribution", (Item("car", "red"), Item("tree", "green"))): True,
        Scene("attribution", (Item("car", "green"), Item("tree", "red"))): False,
    }
    pictures = torch.zeros(len(asked), 200, 200, 3, dtype=torch.uint8)
    assert auditor.check(pictures, list(asked)) == list(asked.values())
    with pytest.raises(ValueError, match="1 images for 2 scenes"):
        auditor.check(pictures[:1], list(asked)[:2])
    with pytest.raises(ValueError, match="'wolf'"):
        auditor.check(pictures[:1], [Scene("single", (Item("wolf"),))])


def test_what_is_frozen_is_what_is_loaded_and_nothing_else(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = CellLabeller(len(OBJECTS)).eval()
    freeze(model, {"heart": "red"}, {"steps": 3}, tmp_path)
    auditor = Auditor.load(tmp_path)
    pictures = torch.rand(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        for ours, theirs in zip(model(pictures), auditor.model(pictures), strict=True):
            torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0.02)
    assert (auditor.classes, auditor.twins) == (NAMES, {"heart": "red"})
    assert (tmp_path / WEIGHTS).stat().st_size < 4_000_000
    blob = bytearray((tmp_path / WEIGHTS).read_bytes())
    blob[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(blob)
    with pytest.raises(ValueError, match="has sha256"):
        Auditor.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Auditor.load(tmp_path / "nowhere")
    with torch.no_grad():
        model.kind.bias[0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        freeze(model, {}, {}, tmp_path)


def test_the_threshold_is_measured_on_pictures_of_another_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze(CellLabeller(len(OBJECTS)), {}, {"steps": 1}, tmp_path)
    seeds: list[int] = []

    def rates(_auditor: Any, seed: int, count: int, levels: Any, limits: Any) -> list[dict[str, Any]]:
        seeds.append(seed)
        told = {"task": "single", "level": "clean", "n": count}
        # True scenes pass up to 0.45, hard negatives below 0.35.
        return [
            told | {"threshold": limit, "true_pass": float(limit < 0.46), "false_pass": float(limit < 0.35)}
            for limit in limits
        ]

    def tables(rows: list[dict[str, Any]]) -> str:
        return f"{len(rows)} rows"

    monkeypatch.setattr(freezing, "rates", rates)
    monkeypatch.setattr(freezing, "rate_tables", tables)
    calibrate(tmp_path, 5)
    card = json.loads((tmp_path / CARD).read_text())
    assert card["threshold"] == 0.45
    assert [row["threshold"] for row in card["measured"]["rates"]] == [0.45, card["strict"]]
    assert seeds == [freezing.CALIBRATION_SEED, freezing.TEST_SEED]
    assert "Threshold 0.45" in (tmp_path / "README.md").read_text()
    assert Auditor.load(tmp_path).threshold == 0.45


def test_the_loss_is_weighted_cross_entropy_and_takes_either_of_two_colours() -> None:
    told = labels(("heart", slice(0, 2), slice(0, 1), RED), sure=2.0)
    kinds = torch.full((1, CELLS, CELLS), IGNORED)
    colors = kinds.clone()
    kinds[0, 0, 0], kinds[0, 5, 5] = INDEX["heart"], NOTHING
    colors[0, 0, 0] = OWN_COLOR
    examples = Examples(torch.zeros(1, 3, SIDE, SIDE), kinds, colors)
    right = -math.log(math.exp(2) / (math.exp(2) + NOTHING))
    # Both cells are as sure of what they hold, so their weights cancel out.
    own = -math.log(1 / (math.exp(2) + OWN_COLOR))
    assert float(loss_of(told, examples, {})) == pytest.approx(right + own, rel=1e-4)
    either = -math.log((1 + math.exp(2)) / (math.exp(2) + OWN_COLOR))
    assert float(loss_of(told, examples, {INDEX["heart"]: RED})) == pytest.approx(right + either, rel=1e-4)
    kinds[0, 5, 5] = INDEX["dog"]
    wrong = -math.log(1 / (math.exp(2) + NOTHING))
    assert float(loss_of(told, examples, {})) == pytest.approx((right + wrong) / 2 + own, rel=1e-4)
    kinds[0, 5, 5], kinds[0, 0, 0] = NOTHING, INDEX["dog"]
    mixed = (right * EMPTY_WEIGHT + wrong) / (1 + EMPTY_WEIGHT)
    assert float(loss_of(told, examples, {})) == pytest.approx(mixed + own, rel=1e-4)
    colors[:] = IGNORED
    assert float(loss_of(told, examples, {})) == pytest.approx(mixed, rel=1e-4)


def test_crowds_fill_the_quarters_and_no_object_has_the_backgrounds_colour() -> None:
    batch = crowds(Random(3), 40)
    assert (batch.variants >= 0).all()
    quarters = (batch.boxes[..., :2] > 0.5).astype(int)
    assert (quarters == [[0, 0], [1, 0], [0, 1], [1, 1]]).all()
    for row in range(40):
        painted = {VARIANTS[variant][1] for variant in batch.variants[row]} - {None}
        assert [*COLORS, *range(9)][batch.backgrounds[row]] not in painted
    assert (scenes(Random(3), 40).variants < 0).any(), "scenes have fewer objects"


def test_the_pool_is_the_same_for_the_same_seed_and_goes_on(composer: Composer) -> None:
    first, second = (PicturePool(composer, 8, 4, seed=5) for _ in range(2))
    one, same = first.draw(6), second.draw(6)
    for ours, theirs in zip(one, same, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert one.pictures.shape == (6, 3, SIDE, SIDE)
    assert 0 <= one.pictures.min() < one.pictures.max() <= 1
    assert one.kinds.shape == one.colors.shape == (6, CELLS, CELLS)
    assert not torch.equal(first.draw(6).pictures, one.pictures)
    other = PicturePool(composer, 8, 4, seed=6).draw(6)
    assert not torch.equal(other.pictures, one.pictures)
    with pytest.raises(ValueError, match="9 pictures cannot be renewed 4 at a time"):
        PicturePool(composer, 9, 4, seed=5)


def test_cells_with_a_colour_hold_a_thing(composer: Composer) -> None:
    examples = PicturePool(composer, 32, 16, seed=7).draw(32)
    painted = examples.colors != IGNORED
    assert painted.any()
    assert (examples.kinds[painted] < NOTHING).all()
    assert (examples.kinds == NOTHING).any()


def test_a_training_of_a_few_steps_runs(composer: Composer) -> None:
    pool = PicturePool(composer, 16, 4, seed=8)
    with Progress(disable=True) as progress:
        model = train(pool, {"heart": "red"}, 6, 4, progress, torch.device("cpu"))
    assert not model.training
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
    torch.manual_seed(0)
    start = {name: tensor.clone() for name, tensor in CellLabeller(len(OBJECTS)).state_dict().items()}
    assert any(not torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items())
