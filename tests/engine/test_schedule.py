"""Schedules against the published ones, and the update rule against its definition."""

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from twinshot_engine.schedule import (
    SUPPORTED_STEPS,
    Steps,
    advance,
    any_step,
    few,
    multi_step,
    schedule_for,
    single_time,
)


def published(
    steps: int, gap: tuple[float, float], warp: tuple[float, float, float] = (1, 1, 1)
) -> np.ndarray:
    """TwinFlow's times, in fp64, without the final 0."""
    a, b, c = warp
    points = np.linspace(gap[0], 1 - gap[1], steps + (gap[1] == 0))[:steps]
    return 1 - (1 - (1 - points**a) ** b) ** c


@pytest.mark.parametrize(("steps", "end"), [(1, 0.5), (2, 0.6), (4, 0.5)])
def test_few_steps_aim_at_the_data(steps: int, end: float) -> None:
    schedule = few(steps)
    assert np.allclose(schedule.t, published(steps, (0.001, end)), atol=1.1e-3)
    assert schedule.target_t == (0.0,) * steps
    assert schedule.noise_ratio == 1.0


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_any_steps_aim_at_the_next_time(steps: int) -> None:
    schedule = any_step(steps)
    assert np.allclose(schedule.t, published(steps, (0.001, 0.5)), atol=1.1e-3)
    assert schedule.target_t == schedule.t_next
    assert schedule.noise_ratio == 0.0


@pytest.mark.parametrize("steps", [16, 30, 64])
def test_multi_steps_aim_at_the_current_time(steps: int) -> None:
    schedule = multi_step(steps)
    assert np.allclose(schedule.t, published(steps, (0.001, 0), (1.17, 0.8, 1.1)), atol=1.1e-3)
    assert schedule.target_t == schedule.t


@pytest.mark.parametrize("steps", SUPPORTED_STEPS)
def test_times_fall_from_exactly_one(steps: int) -> None:
    t = schedule_for(steps).t
    assert t[0] == 1.0
    assert len(t) == steps
    assert all(a > b > 0 for a, b in zip(t, (*t[1:], t[-1] / 2), strict=True))


def test_each_step_count_has_its_schedule() -> None:
    assert all(schedule_for(steps) == few(steps) for steps in (1, 2, 4))
    assert all(schedule_for(steps) == any_step(steps) for steps in (3, 5, 15))
    assert all(schedule_for(steps) == multi_step(steps) for steps in (16, 64))


@pytest.mark.parametrize("steps", [0, -1, 101])
def test_other_step_counts_are_an_error(steps: int) -> None:
    with pytest.raises(ValueError, match=f"{steps} steps are not supported: 1 to 100 are"):
        schedule_for(steps)


@pytest.mark.parametrize("make", [any_step, multi_step])
def test_no_steps_are_an_error(make: object) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make(0)  # type: ignore[operator]


def test_few_has_three_schedules() -> None:
    with pytest.raises(ValueError, match=r"3 steps have no few-step schedule: \[1, 2, 4\] have"):
        few(3)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 30])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_advance_estimates_both_ends_and_mixes_them_anew(steps: int, ratio: float) -> None:
    schedule = replace(schedule_for(steps), noise_ratio=ratio)
    latents, velocity, fresh = torch.randn(3, 2, 8).double().unbind()
    for t, t_next, weights in zip(schedule.t, schedule.t_next, schedule.weights, strict=True):
        data, noise = latents - t * velocity, latents + (1 - t) * velocity
        mixed = math.sqrt(1 - ratio) * noise + math.sqrt(ratio) * fresh
        expected = (1 - t_next) * data + t_next * mixed
        torch.testing.assert_close(
            advance(latents, velocity, fresh, torch.tensor(weights).double()), expected
        )


def test_the_true_velocity_recovers_the_data_in_one_pass() -> None:
    data, noise = torch.randn(2, 2, 8).double().unbind()
    (weights,) = schedule_for(1).weights
    recovered = advance(noise, noise - data, torch.zeros_like(noise), torch.tensor(weights).double())
    torch.testing.assert_close(recovered, data)


def test_a_step_count_may_name_its_schedule() -> None:
    assert schedule_for(Steps.parse("any:4")) == any_step(4)
    assert schedule_for(Steps.parse("multi:4")) == multi_step(4)
    assert schedule_for(Steps.parse("few:2")) == schedule_for(Steps.parse("2")) == few(2)
    named = pickle.loads(pickle.dumps(Steps.parse("any:30")))  # as it goes to another process
    assert (named, f"{named}", schedule_for(named)) == (30, "30", any_step(30))


@pytest.mark.parametrize("text", ["", "x", "any", "any:", "some:4", "4:any", "-1", "1.5", "any:4 ", "٤"])
def test_what_is_no_step_count_is_quoted(text: str) -> None:
    with pytest.raises(ValueError, match=f"steps {text!r} is not a count such as 4, any:8 or multi:30"):
        Steps.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [("few:3", "3 steps have no few-step"), ("any:0", "0 steps are not"), ("multi:101", "101 steps are not")],
)
def test_unsupported_counts_are_refused_where_they_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Steps.parse(text)


def test_guidance_is_for_ordinary_flow_samplers() -> None:
    assert [make(4).takes_guidance for make in (few, any_step, multi_step)] == [False, False, True]


def test_a_network_of_one_time_is_told_both() -> None:
    assert (single_time(0.8, 0.0), single_time(0.8, 0.6), single_time(0.8, 0.8)) == (0.8, 0.5, 0.8)
