"""Which times the transformer sees, and how latents move between them.

Source: inclusionAI/TwinFlow, ``unified_sampler.py`` (UCGM-S, arXiv 2505.07447) and its published settings.
There t starts at .999, which bf16, the precision of its wrappers, rounds to 1. Here it is 1 in every
precision; so the one-step picture is the one stock diffusers draws.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor

SUPPORTED_STEPS = tuple(range(1, 101))
"""Step counts :func:`schedule_for` knows."""

_FEW_STEPS = {1: (1.0,), 2: (1.0, 0.6), 4: (1.0, 5 / 6, 2 / 3, 0.5)}
_ANY_STEP_END = 0.5
_FEWEST_MULTI_STEPS = 16
_LARGEST_ANGLE = 1.5708
_SPRINT_TWO_STEPS = (_LARGEST_ANGLE, 1.3)
_MULTI_STEP_WARP = (1.17, 0.8, 1.1)


class Steps(int):
    """A step count that may say which schedule it is served with.

    Attributes:
        mode: ``few`` aims at the data each time, ``any`` at the next time, ``multi`` at the current one, as
            models do that were not distilled; None leaves it to :func:`schedule_for`.

    Raises:
        ValueError: the count is not supported, or not in this mode.
    """

    mode: str | None

    def __new__(cls, count: int, mode: str | None = None) -> Self:  # noqa: D102 - the class tells
        _check_supported(count)
        steps = super().__new__(cls, count)
        steps.mode = mode
        if mode is not None:
            if mode not in _MODES:
                raise ValueError(f"mode {mode!r} of steps is not one of {', '.join(_MODES)}")
            _MODES[mode](count)
        return steps

    @classmethod
    def parse(cls, text: str) -> "Steps":
        """Read ``4`` or ``any:8``.

        Raises:
            ValueError: it is neither, or not supported.
        """
        match = _ENTRY.fullmatch(text)
        if match is None:
            raise ValueError(f"steps {text!r} is not a count such as 4, any:8 or multi:30")
        return cls(int(match["count"]), match["mode"])


@dataclass(frozen=True, slots=True)
class Schedule:
    """One pass for each entry of ``t``.

    Attributes:
        t: current times, falling from exactly 1 (noise) and always above 0 (data).
        target_t: the time each pass aims at.
        noise_ratio: share of fresh noise (in variance) at each next time, 0 to 1; TwinFlow's rho.
    """

    t: tuple[float, ...]
    target_t: tuple[float, ...]
    noise_ratio: float

    @property
    def t_next(self) -> tuple[float, ...]:
        """The time after each pass; 0 after the last."""
        return (*self.t[1:], 0.0)

    @property
    def takes_guidance(self) -> bool:
        """Whether every pass predicts the velocity at its own time, which is what guidance is defined for."""
        return self.t == self.target_t

    @property
    def weights(self) -> tuple[tuple[float, float, float], ...]:
        """For each pass, how much of the latents x, the velocity v and fresh noise e the next latents are.

        The data behind the latents is estimated as ``x - t v``, their noise as ``x + (1 - t) v``. At the next
        time s they are mixed as ``(1 - s) data + s (sqrt(1 - r) noise + sqrt(r) e)`` with r the noise ratio.
        """
        kept, renewed = math.sqrt(1 - self.noise_ratio), math.sqrt(self.noise_ratio)
        return tuple(
            (1 - s + s * kept, s * kept * (1 - t) - (1 - s) * t, s * renewed)
            for t, s in zip(self.t, self.t_next, strict=True)
        )


class TrigonometricSchedule(Schedule):
    """One pass for each angle: ``x = cos(t) data + sin(t) noise``, renoised in full after each.

    The network sees flow times, so its output is made an angular velocity on the way.
    Source: Chen et al., arXiv 2503.09641 (SANA-Sprint), and Lu and Song, arXiv 2410.11081 (sCM).
    """

    @property
    def weights(self) -> tuple[tuple[float, float, float], ...]:
        """For each pass, how much of the latents, of the network's output and of fresh noise the next are.

        With the flow time f of angle t and ``r^2 = f^2 + (1 - f)^2``, the angular velocity is
        ``(1 - 2 f) x + r out`` and the data ``cos(t) x - sin(t) velocity``.
        """
        rows = []
        for t, after in zip(self.t, self.t_next, strict=True):
            flow = math.sin(t) / (math.cos(t) + math.sin(t))
            size = math.hypot(flow, 1 - flow)
            of_latents, of_output = math.cos(t) - math.sin(t) * (1 - 2 * flow), -math.sin(t) * size
            rows.append((math.cos(after) * of_latents, math.cos(after) * of_output, math.sin(after)))
        return tuple(rows)


def trigonometric(steps: int) -> TrigonometricSchedule:
    """Choose the angles that ``SanaSprintPipeline`` serves a step count with.

    Raises:
        ValueError: steps is not between 1 and 64.
    """
    _check_supported(steps)
    if steps == len(_SPRINT_TWO_STEPS):
        angles: tuple[float, ...] = _SPRINT_TWO_STEPS
    else:
        angles = tuple(_LARGEST_ANGLE * (1 - step / steps) for step in range(steps))
    return TrigonometricSchedule(angles, (0.0,) * steps, noise_ratio=1.0)


def few(steps: int) -> Schedule:
    """Aim at the data every time and renoise in between. Raises ValueError unless steps is 1, 2 or 4."""
    if steps not in _FEW_STEPS:
        raise ValueError(f"{steps} steps have no few-step schedule: {sorted(_FEW_STEPS)} have")
    return Schedule(_FEW_STEPS[steps], (0.0,) * steps, noise_ratio=1.0)


def any_step(steps: int) -> Schedule:
    """Aim at the next time, without fresh noise. Raises ValueError if steps is below 1."""
    _check_positive(steps)
    fall = (1 - _ANY_STEP_END) / max(steps - 1, 1)
    t = tuple(1 - fall * i for i in range(steps))
    return Schedule(t, (*t[1:], 0.0), noise_ratio=0.0)


def multi_step(steps: int) -> Schedule:
    """Aim at the current time: an ordinary flow sampler. Raises ValueError if steps is below 1."""
    _check_positive(steps)
    a, b, c = _MULTI_STEP_WARP
    t = tuple(1 - (1 - (1 - (i / steps) ** a) ** b) ** c for i in range(steps))
    return Schedule(t, t, noise_ratio=0.0)


_MODES: Mapping[str, Callable[[int], Schedule]] = {"few": few, "any": any_step, "multi": multi_step}
_ENTRY = re.compile(rf"((?P<mode>{'|'.join(_MODES)}):)?(?P<count>[0-9]{{1,4}})")


def schedule_for(steps: int) -> Schedule:
    """Choose the schedule a step count is served with.

    That is its mode's if it is a :class:`Steps` that names one. Else it is few for 1, 2 and 4, any up to 15
    and multi from 16.

    Raises:
        ValueError: steps is not between 1 and 100.
    """
    chosen = steps if isinstance(steps, Steps) else Steps(steps)
    if chosen.mode is not None:
        return _MODES[chosen.mode](steps)
    if steps in _FEW_STEPS:
        return few(steps)
    return any_step(steps) if steps < _FEWEST_MULTI_STEPS else multi_step(steps)


def single_time(now: float, target: float) -> float:
    """The one time that a network without a second time embedder is given.

    A TwinFlow LoRA was trained with ``t - target / 2``, which is ``t`` where it aims at the data. At
    ``target == t`` stands the base model, which knows t alone.
    """
    return now if target == now else now - target / 2


def advance(latents: Tensor, velocity: Tensor, fresh: Tensor, weights: Tensor) -> Tensor:
    """Move latents to the next time.

    Args:
        latents: noisy, any shape, fp32.
        velocity: predicted there.
        fresh: standard normal noise; may be anything finite where its weight is 0.
        weights: ``[3]``, a pass's :attr:`Schedule.weights`.
    """
    of_latents, of_velocity, of_fresh = weights.unbind()
    return of_latents * latents + of_velocity * velocity + of_fresh * fresh


def _check_supported(steps: int) -> None:
    if steps not in SUPPORTED_STEPS:
        raise ValueError(
            f"{steps} steps are not supported: {SUPPORTED_STEPS[0]} to {SUPPORTED_STEPS[-1]} are"
        )


def _check_positive(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"{steps} steps are not supported: at least 1 is needed")
