"""TwinFlow's losses against problems whose answer is known in closed form."""

import math

import pytest
import torch

from twinshot_distill import losses

SHAPE = (5, 2, 3, 4)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pictures(count: int = 2) -> list[torch.Tensor]:
    return [torch.randn(SHAPE, dtype=torch.float64) for _ in range(count)]


def times(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_path_runs_from_data_to_noise_and_ignores_the_sign_of_time() -> None:
    x, z = pictures()
    torch.testing.assert_close(losses.mix(x, z, times(0, 0, 0, 0, 0)), x)
    torch.testing.assert_close(losses.mix(x, z, times(1, 1, 1, 1, 1)), z)
    t = times(0.1, 0.3, 0.5, 0.7, 0.9)
    torch.testing.assert_close(losses.mix(x, z, -t), losses.mix(x, z, t))


def test_true_velocity_leads_back_to_the_data() -> None:
    x, z = pictures()
    t = times(0.1, -0.3, 0.5, 0.7, 1)
    torch.testing.assert_close(losses.data_estimate(losses.mix(x, z, t), z - x, t), x)


def test_flow_matching_is_zero_at_the_velocity_and_quadratic_around_it() -> None:
    x, z = pictures()
    assert losses.flow_matching(z - x, x, z) == 0
    assert losses.flow_matching(z - x + 0.5, x, z).item() == pytest.approx(0.25)


def test_rcgm_target_of_a_straight_path_is_its_velocity() -> None:
    x, z = pictures()
    t, r = times(1, 0.9, 0.5, 0.3, 0.305), times(0, 0.4, 0.1, 0.295, 0.3)

    def teacher(x_t: torch.Tensor, now: torch.Tensor, then: torch.Tensor) -> torch.Tensor:
        return z - x

    goal = losses.rcgm_target(teacher, losses.mix(x, z, t), t, r, z - x, order=2)
    torch.testing.assert_close(goal, z - x)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_rcgm_target_of_an_exact_flow_map_is_the_mean_velocity(order: int) -> None:
    """For dx/dt = a x the flow map is known, so a teacher that knows it must give the exact leap."""
    a = 0.7
    (start,) = pictures(1)
    t, r = times(1, 0.9, 0.8, 0.7, 0.6), times(0, 0.1, 0.2, 0.3, 0.4)

    def mean_velocity(point: torch.Tensor, now: torch.Tensor, then: torch.Tensor) -> torch.Tensor:
        shrink = torch.exp(a * (then - now))
        return point * losses.over((1 - shrink) / (now - then), point)

    first = mean_velocity(start, t, t - losses.RCGM_STEP)
    goal = losses.rcgm_target(mean_velocity, start, t, r, first, order=order)
    torch.testing.assert_close(goal, mean_velocity(start, t, r))


def test_rcgm_without_room_for_a_step_follows_the_target() -> None:
    x, z = pictures()
    t = times(0.5, 0.5, 0.5, 0.5, 0.5)
    wrong = lambda *_: torch.full(SHAPE, 99.0, dtype=torch.float64)  # noqa: E731
    torch.testing.assert_close(losses.rcgm_target(wrong, x, t, t - 0.004, z), z)


def test_clamped_target_steps_towards_the_goal_by_at_most_one() -> None:
    prediction, goal = pictures()
    prediction.requires_grad_()
    bounded = losses.clamped_target(prediction, goal, torch.ones(5), torch.zeros(5))
    assert not bounded.requires_grad
    expected = prediction - (100 * (prediction - goal)).clamp(-1, 1)
    torch.testing.assert_close(bounded, expected.detach())
    near = losses.clamped_target(prediction, prediction.detach() + 0.25, torch.ones(5), torch.ones(5))
    torch.testing.assert_close(near, prediction.detach() + 0.25)


def test_gap_weight_is_one_for_the_leap_and_tan_for_neighbours() -> None:
    weight = losses.gap_weight(times(1, 0.5, -0.4), times(0, 0.5, -0.4))
    assert weight.tolist() == pytest.approx([1.0, 1 + math.tan(math.pi / 2.5), 1 + math.tan(math.pi / 2.5)])


def test_l2_is_the_mean_square_of_a_row() -> None:
    target = torch.tensor([[[[1.0, 1.0]]], [[[2.0, 0.0]]]])
    assert losses.row_errors(torch.zeros_like(target), target).tolist() == [1, 2]


@pytest.mark.parametrize("error", [0.0, 1e-4, 1e-3, 0.1, 3.0])
def test_barron_is_its_formula_and_nearly_the_root_mean_square(error: float) -> None:
    prediction = torch.full((1, 3, 2, 2), error, dtype=torch.float64, requires_grad=True)
    (loss,) = losses.row_errors(prediction, torch.zeros_like(prediction), "barron")
    mse, c = error**2, 1e-3
    root = (mse / (c**2 + 1e-8) + 1) ** -0.5
    assert loss.item() == pytest.approx(mse * root / c)
    if error >= 0.1:
        assert loss.item() == pytest.approx(error, rel=0.01)
    # The root is a constant to the gradient, so that is the mean square's, scaled.
    (gradient,) = torch.autograd.grad(loss, prediction)
    torch.testing.assert_close(gradient, 2 * prediction.detach() / 12 * root / c)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_consistency_residual_is_the_published_formula(order: int) -> None:
    """D = 100 (t - r) F - 100 S - target, and F - S / (t - r) - target where there is no room for a step."""
    x, z = pictures()
    t, r = times(1, 0.9, 0.5, 0.3, 0.405), times(0, 0.4, 0.1, 0.295, 0.4)
    teacher = lambda x_t, now, then: torch.sin(x_t) * losses.over(now - 2 * then, x_t)  # noqa: E731
    target, prediction = torch.randn(SHAPE, dtype=torch.float64), torch.randn(SHAPE, dtype=torch.float64)
    x_t = losses.mix(x, z, t)
    near = (t - 0.01).maximum(r)
    point, moved, here = x_t - 0.01 * target, torch.zeros_like(x_t), near
    for k in range(1, order + 1):
        after = near + (r - near) * k / order
        f = teacher(point, here, after)
        clean, noise = point - losses.over(here, x_t) * f, point + losses.over(1 - here, x_t) * f
        point = losses.over(after, x_t) * noise + losses.over(1 - after, x_t) * clean
        moved, here = moved + f * losses.over(here - after, x_t), after
    gap = losses.over(t - r, x_t)
    wide = 100 * gap * prediction - 100 * moved - target
    narrow = prediction - moved / gap - target
    residual = torch.where(gap >= 0.01, wide, narrow)
    goal = losses.rcgm_target(teacher, x_t, t, r, target, order=order)
    bounded = losses.clamped_target(prediction, goal, t, r)
    torch.testing.assert_close(bounded, prediction - residual.clamp(-1, 1))


def test_targets_below_t() -> None:
    t, u = times(1, 0.8, 0.5, 0.2, 0.0), times(0, 0.5, 1, 1, 1)
    torch.testing.assert_close(losses.near_target(t, u), times(1, 0.78, 0.475, 0.19, 0))
    torch.testing.assert_close(losses.near_target(t, u, 0.02), times(1, 0.792, 0.49, 0.196, 0))
    torch.testing.assert_close(losses.far_target(t, u), times(1, 0.4, 0, 0, 0))
    torch.testing.assert_close(losses.far_target(t, u, 0.5), times(1, 0.6, 0.25, 0.1, 0))


def test_guided_rows_are_strictly_inside_the_range() -> None:
    t = times(-0.5, 0, 0.3, 0.9, 1)
    assert losses.enhanced_rows(t, (0, 1)).tolist() == [False, False, True, True, False]
    assert losses.enhanced_rows(t, (0.3, 0.9)).tolist() == [False] * 5


def test_guidance_moves_the_target_along_the_difference() -> None:
    conditional, unconditional = pictures()
    moved = losses.guided(conditional, unconditional, conditional, 1.5)
    torch.testing.assert_close(moved, conditional + 1.5 * (conditional - unconditional))


def test_rectification_vanishes_when_both_trajectories_agree_and_is_bounded() -> None:
    x, z = pictures()
    t = times(0.1, 0.3, 0.5, 0.7, 0.9)
    blind = lambda x_t, now, then: x_t * losses.over(now.abs(), x_t)  # noqa: E731
    assert losses.rectification_gradient(blind, x, z, t).abs().max() == 0
    seeing = lambda x_t, now, then: 10 * torch.sign(losses.over(now, x_t)) * torch.ones_like(x_t)  # noqa: E731
    assert losses.rectification_gradient(seeing, x, z, t).unique().tolist() == [-1.0]


def test_rectification_moves_samples_towards_the_data_distribution() -> None:
    """Gaussians have closed-form velocities; a generator with the wrong mean is pushed right."""
    data_mean, fake_mean = 1.0, -1.0

    def velocity(x_t: torch.Tensor, now: torch.Tensor, then: torch.Tensor) -> torch.Tensor:
        mean = torch.where(now < 0, fake_mean, data_mean)
        t = now.abs()
        # Data N(mean, 1): E[z - x | x_t] for x_t = t z + (1 - t) x.
        gain = (t - (1 - t)) / (t**2 + (1 - t) ** 2)
        centred = x_t - losses.over((1 - t) * mean, x_t)
        return losses.over(gain, x_t) * centred - losses.over(mean, x_t)

    noise = torch.randn(SHAPE, dtype=torch.float64)
    leap = noise - (noise + fake_mean)  # one step: x = z - F = z + fake_mean
    pull = losses.rectification_gradient(
        velocity, noise - leap, torch.randn_like(noise), torch.full((5,), 0.5, dtype=torch.float64)
    )
    moved = noise - (leap - pull)
    assert moved.mean() > (noise - leap).mean()
