"""One step of TwinFlow: which rows there are, whom it asks, and what comes out, by formulas written here."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from twinshot_distill.objective import GroupWeights, Networks, Objective, draw_rows, split
from twinshot_distill.step import few_steps, loss_terms, one_step_samples, real_target

BARE = Objective(enhanced_ratio=0, order=0, rectify=0, distance="l2")


class Words:
    """A condition whose rows are known: a number each."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __getitem__(self, rows: slice, /) -> Words:
        return Words(self.values[rows])


class Recorder:
    """A network whose velocity is a formula, and which remembers what it was asked."""

    def __init__(self, name: str, log: list[str], slope: float = 0.0) -> None:
        self.name, self.log, self.slope = name, log, slope
        self.calls: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def __call__(self, x_t: Tensor, t: Tensor, r: Tensor, condition: Words) -> Tensor:
        self.calls.append((x_t, t, r, condition.values))
        self.log.append(f"{self.name} {len(x_t)}")
        return self.slope * x_t + condition.values[:, None]


def networks() -> tuple[Networks[Words], Recorder, Recorder, Recorder, list[str]]:
    log: list[str] = []
    student, teacher, guide = (Recorder(name, log) for name in ("student", "teacher", "guide"))
    return Networks(student, teacher, guide, lambda: log.append("follow")), student, teacher, guide, log


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def test_a_batch_is_split_by_rounded_weights_and_the_last_group_takes_the_rest() -> None:
    assert split(10, Objective().shares) == {
        "e2e": slice(0, 2),
        "mul": slice(2, 4),
        "one": slice(0, 0),
        "any": slice(4, 6),
        "adv": slice(6, 10),
    }
    lora = replace(Objective(), groups=GroupWeights(one=1, any=0))
    assert split(8, lora.shares)["one"] == slice(4, 6)
    only = replace(Objective(), groups=GroupWeights(e2e=0, any=0, adv=0))
    assert split(5, only.shares)["mul"] == slice(0, 5)


def test_every_group_gets_a_row_where_there_are_enough() -> None:
    assert [span.stop for span in split(6, Objective().shares).values()] == [2, 4, 0, 5, 6]
    uneven = replace(Objective(), groups=GroupWeights(e2e=3, one=0.1)).shares
    assert [span.stop for span in split(9, uneven).values()] == [4, 6, 7, 8, 9]


def test_a_batch_with_too_few_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="batch of 3 rows is too small"):
        split(3, Objective().shares)


def test_rows_have_the_papers_times() -> None:
    x = torch.zeros(500, 2)
    settings = replace(Objective(), groups=GroupWeights(one=1))
    rows = draw_rows(x, settings)
    t, r, at = rows.t, rows.r, rows.groups
    assert (t[at["e2e"]] == 1).all()
    assert (r[at["e2e"]] == 0).all()
    near = at["mul"]
    assert ((r <= t) & (r >= 0.95 * t))[near].all()
    assert (r[near] < t[near]).any()
    assert (r[at["one"]] == 0).all()
    assert 0.3 < t[at["one"]].mean() < 0.7
    share = r[at["any"]] / t[at["any"]]
    assert share.min() < 0.1
    assert share.max() > 0.9
    assert ((t == r) & (t < 0))[at["adv"]].all()
    assert rows.real == slice(0, 400)


def test_times_may_follow_a_beta_distribution() -> None:
    settings = replace(Objective(), times=(8.0, 2.0, 0.5))
    t = draw_rows(torch.zeros(4000, 1), settings).t[1000:2000]
    assert t.max() <= 0.5
    assert 0.37 < t.mean() < 0.43  # half of 8 / (8 + 2)


def test_some_of_the_rows_that_go_anywhere_can_aim_at_the_data() -> None:
    rows = draw_rows(torch.zeros(400, 1), replace(Objective(), leap_share=0.5))
    assert 25 < (rows.r[rows.groups["any"]] == 0).sum() < 75


def test_consistency_zero_is_flow_matching() -> None:
    rows = draw_rows(torch.zeros(400, 1), replace(Objective(), consistency=0.0))
    assert torch.equal(rows.r[100:300], rows.t[100:300])


def test_plain_flow_matching_asks_the_student_alone_and_is_its_formula() -> None:
    nets, student, teacher, guide, _ = networks()
    settings = replace(BARE, groups=GroupWeights(e2e=0, any=0, adv=0), consistency=0.0)
    x, words = torch.randn(6, 2), Words(torch.randn(6))
    terms = loss_terms(nets, settings, x, words, words)
    (x_t, t, r, _) = student.calls[0]
    assert torch.equal(t, r)
    z = (x_t - (1 - t)[:, None] * x) / t[:, None]
    weight = math.tan(math.pi / 2.5) + 1
    expected = weight * (words.values[:, None] - (z - x)).square().mean()
    assert sum(terms.values()).item() == pytest.approx(expected.item(), rel=1e-4)
    assert not teacher.calls
    assert not guide.calls


def test_order_zero_counts_mul_and_adv_rows_alone() -> None:
    nets, student, teacher, _, _ = networks()
    x, words = torch.randn(8, 2), Words(torch.zeros(8))
    terms = loss_terms(nets, BARE, x, words, words)
    assert not teacher.calls
    fake_noise, _, _, _ = student.calls[0]
    x_t, t, r, _ = student.calls[1]
    data = torch.cat([x[:6], fake_noise])  # the student predicts 0, so its samples are their noise
    share = t.abs()[:, None]
    z = (x_t - (1 - share) * data) / share
    errors = (z - data).square().mean(1)
    weight = torch.tan((1 - (t.abs() - r.abs())) * math.pi / 2.5) + 1
    assert terms["base"].item() == pytest.approx((weight * errors)[2:4].sum().item() / 4, rel=1e-3)
    assert terms["adv"].item() == pytest.approx(errors[6:].sum().item() / 4, rel=1e-3)


def test_whom_a_full_step_asks_and_in_which_order() -> None:
    nets, student, _, guide, log = networks()
    x, words = torch.randn(16, 2), Words(torch.arange(16.0))
    loss_terms(nets, Objective(), x, words, Words(torch.full((16,), -1.0)))
    assert log == [
        "student 4",  # fake samples
        "student 16",
        "follow",
        "guide 8",
        "guide 8",
        "teacher 12",
        "teacher 12",
        "student 4",  # fake and real trajectory
        "student 4",
    ]
    assert student.calls[0][3].tolist() == [12, 13, 14, 15]  # adv rows' own captions
    given, empty = guide.calls
    assert torch.equal(given[1], given[2])
    assert given[3].tolist() == list(range(4, 12))
    assert (empty[3] == -1).all()
    fake, real = student.calls[2:]
    assert torch.equal(fake[1], -real[1])
    assert torch.equal(fake[2], fake[1])
    assert fake[3].tolist() == [0, 1, 2, 3]
    assert torch.equal(fake[0], real[0])


def test_targets_are_guided_where_the_range_says() -> None:
    _, _, _, guide, _ = networks()
    settings = replace(Objective(), enhanced_ratio=2.0, enhanced_range=(0.3, 0.7))
    rows = draw_rows(torch.randn(40, 2), settings)
    given, empty = Words(torch.ones(40)), Words(torch.zeros(40))
    target = real_target(rows, rows.x, settings, guide, given, empty)
    inside = (rows.t > 0.3) & (rows.t < 0.7)
    inside[30:] = False
    assert inside[:30].any()
    assert torch.allclose(target, rows.z - rows.x + 2.0 * inside[:, None])


def test_a_range_beyond_one_guides_the_leap_too() -> None:
    _, _, _, guide, _ = networks()
    settings = replace(Objective(), enhanced_ratio=1.0, enhanced_range=(0.0, 1.1))
    rows = draw_rows(torch.randn(8, 2), settings)
    target = real_target(rows, rows.x, settings, guide, Words(torch.ones(8)), Words(torch.zeros(8)))
    assert torch.allclose((target - (rows.z - rows.x))[:2], torch.ones(2, 2))


def test_a_frozen_teacher_without_data_gives_the_whole_target() -> None:
    _, _, _, guide, _ = networks()
    settings = replace(Objective(), enhanced_ratio=4.0, teacher_decay=1.0, data_free=True)
    rows = draw_rows(torch.randn(8, 2), settings)
    target = real_target(rows, rows.x, settings, guide, Words(torch.full((8,), 3.0)), Words(torch.ones(8)))
    assert torch.allclose(target[2:6], torch.full((4, 2), 1 + 4.0 * (3 - 1)))
    assert torch.allclose(target[:2], (rows.z - rows.x)[:2])


def test_distilled_groups_follow_the_guide() -> None:
    _, _, _, guide, _ = networks()
    settings = replace(Objective(), enhanced_ratio=0.5, distilled=("e2e", "any"))
    rows = draw_rows(torch.randn(8, 2), settings)
    target = real_target(rows, rows.x, settings, guide, Words(torch.full((8,), 3.0)), Words(torch.ones(8)))
    assert torch.allclose(target[:2], torch.full((2, 2), 3.0))
    assert torch.allclose(target[4:6], torch.full((2, 2), 3.0 + 0.5 * 2))
    assert torch.allclose(target[2:4], (rows.z - rows.x)[2:4] + 0.5 * 2)


def test_without_data_every_row_is_the_students_own_sample() -> None:
    nets, student, _, _, log = networks()
    x = torch.full((8, 2), 1e6)
    loss_terms(nets, replace(Objective(), data_free=True), x, Words(torch.zeros(8)), Words(torch.zeros(8)))
    assert log[0] == "student 8"
    assert student.calls[1][0].abs().max() < 100


def test_rectification_is_its_formula_and_needs_full_consistency() -> None:
    gradient = 0.25

    def student(x_t: Tensor, t: Tensor, r: Tensor, condition: Words) -> Tensor:
        return torch.where((t < 0)[:, None], gradient, 0.0).expand_as(x_t) + weight

    weight = torch.zeros(2, requires_grad=True)
    nets = Networks(student, student, student, lambda: None)
    settings = replace(BARE, rectify=0.5)
    words = Words(torch.zeros(8))
    terms = loss_terms(nets, settings, torch.randn(8, 2), words, words)
    assert terms["rectify"].item() == pytest.approx(0.5 * gradient**2)
    (slope,) = torch.autograd.grad(terms["rectify"], weight)
    assert slope.tolist() == pytest.approx([0.5 * gradient] * 2)
    assert "rectify" not in loss_terms(
        nets, replace(settings, consistency=0.9), torch.randn(8, 2), words, words
    )


def test_samples_of_one_and_more_steps() -> None:
    noise, words = torch.randn(4, 2), Words(torch.full((4,), 0.5))
    constant = Recorder("student", [])
    assert torch.allclose(few_steps(constant, noise, words, 3), noise - 0.5)
    assert [call[1][0].item() for call in constant.calls] == pytest.approx([1, 2 / 3, 1 / 3])
    assert one_step_samples(constant, words, noise).shape == noise.shape


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        (Objective(), 3 + 0.25 + 2 * 0.5 + 2 * 0.75 + 2 * 0.25),
        (replace(BARE, groups=GroupWeights(e2e=0, any=0, adv=0)), 3),
        (replace(Objective(), groups=GroupWeights(adv=0), rectify=0, enhanced_ratio=0), 3 + 2),
        (replace(Objective(), data_free=True), 3 + 1 + 1 + 1.5 + 0.5),
        (replace(Objective(), distilled=("e2e", "any")), 3 + 0.25 + 0.5 + 0.75 + 1.5 + 0.5),
    ],
)
def test_work_counts_the_passes_that_a_step_makes(settings: Objective, passes: float) -> None:
    assert settings.work == pytest.approx(passes)
    nets, *_, log = networks()
    words = Words(torch.zeros(400))
    loss_terms(nets, settings, torch.randn(400, 2), words, words)
    rows = sum(int(entry.split()[1]) for entry in log if " " in entry)
    assert (rows + 2 * 400) / 400 == pytest.approx(passes)  # the gradient costs two more


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"groups": GroupWeights(0, 0, 0, 0, 0)}, "one of them above 0"),
        ({"groups": GroupWeights(mul=-1)}, "0 or more"),
        ({"teacher_decay": 1.5}, "teacher_decay 1.5"),
        ({"consistency": -0.1}, "consistency -0.1"),
        ({"order": -1}, "order -1"),
        ({"order": 0, "groups": GroupWeights(mul=0, adv=0)}, "order 0"),
    ],
)
def test_impossible_objectives_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(Objective(), **change)  # type: ignore[arg-type]
