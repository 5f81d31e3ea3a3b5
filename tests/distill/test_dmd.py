"""DMD2's losses against their formulas, and who is asked and trained in which step."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Self

import pytest
import torch
from torch import Tensor, nn

from twinshot_distill import dmd_losses, losses
from twinshot_distill.dmd import DmdNetworks, DmdObjective, fake_terms, generator_terms

SHAPE = (5, 2, 3, 4)


class Words:
    """A condition that is one number a row."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __getitem__(self, rows: slice, /) -> Self:
        return type(self)(self.values[rows])


GIVEN, EMPTY = Words(torch.ones(6)), Words(torch.zeros(6))


class Line(nn.Module):
    """A linear network that notes how it was called: times, rows, whether for a gradient, condition."""

    def __init__(self, name: str, log: list[tuple[str, Tensor, bool, Tensor]]) -> None:
        super().__init__()
        self.name, self.log = name, log
        self.layer = nn.Linear(4, 3)

    def forward(self, x_t: Tensor, t: Tensor, _r: Tensor, condition: Words) -> Tensor:
        self.log.append((self.name, t, torch.is_grad_enabled(), condition.values))
        out: Tensor = self.layer(torch.cat([x_t, t[:, None]], 1))
        return out * (1 + condition.values[:, None])


class Judge(Line):
    def forward(self, x_t: Tensor, t: Tensor, condition: Words) -> Tensor:  # type: ignore[override]
        return super().forward(x_t, t, t, condition).square().sum(1)


def networks() -> tuple[DmdNetworks[Words], dict[str, Line], list[tuple[str, Tensor, bool, Tensor]]]:
    torch.manual_seed(0)
    log: list[tuple[str, Tensor, bool, Tensor]] = []
    lines = {name: Line(name, log) for name in ("generator", "real", "fake")} | {
        "critic": Judge("critic", log)
    }
    return DmdNetworks(*lines.values()), lines, log


def trained(lines: dict[str, Line]) -> set[str]:
    return {name for name, line in lines.items() if line.layer.weight.grad is not None}


def test_matching_gradient_is_the_published_formula() -> None:
    torch.manual_seed(0)
    sample, real, fake, z = (torch.randn(SHAPE, dtype=torch.float64) for _ in range(4))
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    x_t = losses.mix(sample, z, t)
    found = dmd_losses.matching_gradient(sample, x_t, real, fake, t)
    for row in range(5):
        to_real = sample[row] - (x_t[row] - t[row] * real[row])
        to_fake = sample[row] - (x_t[row] - t[row] * fake[row])
        torch.testing.assert_close(found[row], (to_real - to_fake) / to_real.abs().mean())


@pytest.mark.parametrize("mean", [-2.0, 3.0])
def test_matching_gradient_of_gaussians_leads_away_from_the_data(mean: float) -> None:
    """Data N(0, s²), samples N(m, s²): the estimates differ by m t² / ((1 - t)² s² + t²)."""
    torch.manual_seed(0)
    s, t = 0.5, torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    sample = mean + s * torch.randn(3, 7, dtype=torch.float64)
    x_t = losses.mix(sample, torch.randn_like(sample), t)
    spread = (1 - t) ** 2 * s**2 + t**2

    def velocity(centre: float) -> Tensor:
        gain = ((1 - t) * s**2 / spread)[:, None]
        data = centre + gain * (x_t - (1 - t)[:, None] * centre)
        return (x_t - data) / t[:, None]

    found = dmd_losses.matching_gradient(sample, x_t, velocity(0.0), velocity(mean), t)
    size = (sample - (x_t - t[:, None] * velocity(0.0))).abs().mean(1)
    expected = (mean * t**2 / spread / size)[:, None].expand_as(found)
    torch.testing.assert_close(found, expected)


def test_matching_gradient_is_nothing_where_both_models_agree_and_finite_where_real_is_exact() -> None:
    torch.manual_seed(0)
    x, z = torch.randn(SHAPE), torch.randn(SHAPE)
    t = torch.full((5,), 0.4)
    x_t = losses.mix(x, z, t)
    assert not dmd_losses.matching_gradient(x, x_t, x + z, x + z, t).any()
    assert torch.isfinite(dmd_losses.matching_gradient(x, x_t, z - x, x + z, t)).all()


def test_pulled_has_the_gradient_it_is_given() -> None:
    sample = torch.randn(SHAPE, requires_grad=True)
    gradient = torch.randn(SHAPE)
    loss = dmd_losses.pulled(sample, gradient)
    loss.backward()
    torch.testing.assert_close(sample.grad, gradient / gradient.numel())
    assert loss.item() == pytest.approx(0.5 * float(gradient.square().mean()), rel=1e-5)


def test_critic_and_generator_want_opposite_things() -> None:
    low, high = torch.tensor([-2.0, -1.0]), torch.tensor([0.5, 3.0])

    def log_share(logits: Tensor) -> float:
        return sum(math.log(1 / (1 + math.exp(-float(v)))) for v in logits) / len(logits)

    assert dmd_losses.critic_loss(high, low).item() == pytest.approx(-log_share(high) - log_share(-low))
    assert dmd_losses.deceiving_loss(low).item() == pytest.approx(-log_share(low))
    assert dmd_losses.critic_loss(high, low) < dmd_losses.critic_loss(low, high)
    assert dmd_losses.deceiving_loss(high) < dmd_losses.deceiving_loss(low)


def test_a_generators_step_trains_the_generator_alone() -> None:
    nets, lines, log = networks()
    terms = generator_terms(nets, DmdObjective(), torch.randn(6, 3), GIVEN, EMPTY)
    assert set(terms) == {"matching", "deceiving"}
    torch.autograd.backward(sum(terms.values()))
    assert trained(lines) == {"generator"}
    asked = {name: (t, condition) for name, t, *_, condition in log}
    assert (asked["generator"][0] == 1).all()
    conditions = [condition for name, *_, condition in log if name == "real"]
    assert [bool(each.all()) for each in conditions] == [True, False]
    assert all(t.min() >= 0.02 and t.max() <= 0.98 for name, t, *_ in log if name in ("real", "fake"))


def test_a_fake_step_trains_fake_network_and_critic() -> None:
    nets, lines, log = networks()
    terms = fake_terms(nets, DmdObjective(), torch.randn(6, 3), GIVEN)
    assert set(terms) == {"fake", "critic"}
    torch.autograd.backward(sum(terms.values()))
    assert trained(lines) == {"fake", "critic"}
    assert [name for name, *_ in log] == ["generator", "fake", "critic", "critic"]


def test_deceiving_reaches_the_generator_as_if_through_the_critic() -> None:
    """The same noise through the whole graph gives the same gradient and value."""
    settings = DmdObjective(deceiving_weight=0.3)
    nets, lines, log = networks()
    torch.manual_seed(1)
    term = generator_terms(nets, settings, torch.zeros(6, 3), GIVEN, EMPTY)["deceiving"]
    term.backward()
    found = lines["generator"].layer.weight.grad
    noise_time = log[-1][1]
    torch.manual_seed(1)
    noise = torch.randn(6, 3)
    torch.rand(6), torch.randn(6, 3)  # of the matching
    t, z = torch.rand(6), torch.randn(6, 3)
    assert torch.equal(t, noise_time)
    nets, lines, _ = networks()
    sample = noise - nets.generator(noise, torch.ones(6), torch.zeros(6), GIVEN)
    logits = nets.critic((1 - t)[:, None] * sample + t[:, None] * z, t, GIVEN)
    expected = 0.3 * torch.log1p(torch.exp(-logits)).mean()
    expected.backward()
    assert term.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(found, lines["generator"].layer.weight.grad)


def test_matching_reaches_the_generator_with_guidance() -> None:
    settings = DmdObjective(guidance=1.5, deceiving_weight=0.0)
    nets, lines, _ = networks()
    torch.manual_seed(1)
    generator_terms(nets, settings, torch.zeros(6, 3), GIVEN, EMPTY)["matching"].backward()
    found = lines["generator"].layer.weight.grad
    nets, lines, _ = networks()
    torch.manual_seed(1)
    noise = torch.randn(6, 3)
    sample = noise - nets.generator(noise, torch.ones(6), torch.zeros(6), GIVEN)
    t, z = 0.02 + 0.96 * torch.rand(6), torch.randn(6, 3)
    with torch.no_grad():
        x_t = (1 - t)[:, None] * sample + t[:, None] * z
        v_c, v_u = nets.real(x_t, t, t, GIVEN), nets.real(x_t, t, t, EMPTY)
        to_real = sample - x_t + t[:, None] * (v_c + 1.5 * (v_c - v_u))
        to_fake = sample - x_t + t[:, None] * nets.fake(x_t, t, t, GIVEN)
        gradient = (to_real - to_fake) / to_real.abs().mean(1, keepdim=True)
    sample.backward(gradient / 18)
    torch.testing.assert_close(found, lines["generator"].layer.weight.grad)


def test_a_cycle_is_one_step_of_the_generator_and_some_of_the_others() -> None:
    turns = [DmdObjective(fake_updates=3).trains_generator(step) for step in range(9)]
    assert turns == [True, False, False, False, True, False, False, False, True]


@pytest.mark.parametrize("settings", [DmdObjective(), DmdObjective(2, guidance=0.0, critic_depth=1.0)])
def test_work_counts_the_passes_of_a_cycle(settings: DmdObjective) -> None:
    nets, _, log = networks()
    x, depth, passes = torch.randn(6, 3), settings.critic_depth, 0.0
    for step in range(1 + settings.fake_updates):
        log.clear()
        turn = settings.trains_generator(step)
        if turn:
            generator_terms(nets, settings, x, GIVEN, EMPTY)
        else:
            fake_terms(nets, settings, x, GIVEN)
        for name, _, graded, _ in log:
            # A gradient costs two more passes, one more where only the picture gets one.
            cost = (2 if turn and name == "critic" else 3) if graded else 1
            passes += cost * (depth if name == "critic" else 1)
    assert settings.work == pytest.approx(passes / (1 + settings.fake_updates))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fake_updates": 0}, "fake_updates 0"),
        ({"critic_depth": 0.0}, "critic_depth 0.0"),
        ({"times": (0.9, 0.1)}, "two rising numbers"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(DmdObjective(), **change)  # type: ignore[arg-type]
