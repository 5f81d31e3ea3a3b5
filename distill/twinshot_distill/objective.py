"""TwinFlow's objective: what one training step does with one batch (arXiv 2512.05150, released trainer).

A batch is split into groups of rows, in this order:

    e2e  t = 1, r = 0         the one-step leap
    mul  r just below t       stays a flow model
    one  r = 0                leaps to the data from anywhere (the LoRA recipe of order 1)
    any  r anywhere below t   consistent leaps of every length (RCGM of order N)
    adv  t = r < 0            the fake trajectory: flow matching on the student's own samples

and a rectification term moves the one-step samples by the difference of fake and real velocity. There is
no second network but the teacher, and that is an average of the student, or the student itself, whose
start may guide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Generic, Literal, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from twinshot_distill import losses
from twinshot_distill.losses import Distance
from twinshot_distill.strictness import STRICT, check

GroupName = Literal["e2e", "mul", "one", "any", "adv"]


class Sliceable(Protocol):
    """A condition of B rows, of which some can be taken."""

    def __getitem__(self, rows: slice, /) -> Self:
        """The condition of these rows."""


Condition = TypeVar("Condition", bound=Sliceable)


Network = Callable[[Tensor, Tensor, Tensor, Condition], Tensor]
"""F(x_t, t, r, condition): the velocity [B, ...] at x_t [B, ...] on the way from t [B] to r [B]."""


@dataclass(frozen=True, slots=True)
class Networks(Generic[Condition]):
    """The student, the teacher that gives its consistency target, and the guide that gives guidance.

    `follow` lets the teacher take in the student's weights; called once a step, before the optimiser.
    """

    student: Network[Condition]
    teacher: Network[Condition]
    guide: Network[Condition]
    follow: Callable[[], None]


@dataclass(frozen=True, slots=True)
class GroupWeights:
    """Shares of the batch; their sum does not matter, and 0 leaves a group out."""

    __pydantic_config__ = STRICT

    e2e: float = 1
    mul: float = 1
    one: float = 0
    any: float = 1
    adv: float = 1


@dataclass(frozen=True, slots=True)
class Objective:
    """Settings of the objective; the defaults are the released configurations' common ones.

    Attributes:
        groups: how the batch is split.
        order: N of RCGM, the teacher's sub-steps; 0 trains mul and adv rows alone, without a teacher.
        consistency: how far below t targets reach, 1 all the way; below 1 there is no rectification.
        enhanced_ratio: guidance in the target, v + ratio (v_c - v_u); 0 asks no guide.
        enhanced_range: rows with t strictly inside are guided.
        teacher_decay: of the teacher's average; 0 is the student itself. With 1 the frozen start guides and
            the student is its own teacher of consistency, as in the released trainer.
        rectify: weight of the rectification.
        times: (a, b, c) of t ~ c Beta(a, b).
        distance: how a row's error counts.
        data_free: replace all data by the student's own samples; only captions are read.
        guide: who gives guidance: the teacher, or the frozen start (needs a copy of it).
        distilled: groups whose target is the guide's velocity instead of the data's.
        leap_share: share of `any` rows that aim at 0.
    """

    __pydantic_config__ = STRICT

    groups: GroupWeights = field(default_factory=GroupWeights)
    order: int = 2
    consistency: float = 1.0
    enhanced_ratio: float = 0.8
    enhanced_range: tuple[float, float] = (0.0, 1.0)
    teacher_decay: float = 0.99
    rectify: float = 0.5
    times: tuple[float, float, float] = (1.0, 1.0, 1.0)
    distance: Distance = "barron"
    data_free: bool = False
    guide: Literal["teacher", "start"] = "teacher"
    distilled: tuple[GroupName, ...] = ()
    leap_share: float = 0.0

    def __post_init__(self) -> None:
        weights = asdict(self.groups)
        if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
            raise ValueError(f"groups {weights} must be 0 or more, and one of them above 0")
        low, high = self.enhanced_range
        check(
            self,
            ("teacher_decay", "between 0 and 1", 0 <= self.teacher_decay <= 1),
            ("consistency", "between 0 and 1", 0 <= self.consistency <= 1),
            ("order", "0 or more", self.order >= 0),
            ("enhanced_ratio", "0 or more", 0 <= self.enhanced_ratio < math.inf),
            ("enhanced_range", "two rising numbers", low < high),
            ("rectify", "0 or more", 0 <= self.rectify < math.inf),
            ("times", "three numbers above 0", all(0 < number < math.inf for number in self.times)),
            ("leap_share", "between 0 and 1", 0 <= self.leap_share <= 1),
        )
        if self.order == 0 and not self.groups.mul + self.groups.adv:
            raise ValueError("order 0 trains mul and adv rows alone: one of them needs a weight")

    @property
    def rectifies(self) -> bool:
        """Whether the rectification term is part of the loss."""
        return self.rectify > 0 and self.consistency == 1 and self.groups.e2e > 0

    @property
    def shares(self) -> dict[GroupName, float]:
        """The share of the batch that each group of rows takes."""
        weights: dict[GroupName, float] = asdict(self.groups)  # type: ignore[assignment]
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}

    @property
    def work(self) -> float:
        """Forward passes a row: 3 to train the student, and what fake samples, guide and teacher add.

        A plain flow-matching step is 3.
        """
        share = self.shares
        real = 1 - share["adv"]
        later = real if self.guides_leap else real - share["e2e"]
        guide = later if self.enhanced_ratio else 0.0
        if self.enhanced_ratio or self.distilled:
            guide += real if "e2e" in self.distilled else later
        fake = 1.0 if self.data_free else share["adv"]
        return 3 + fake + guide + self.order * real + (2 * share["e2e"] if self.rectifies else 0)

    @property
    def guides_leap(self) -> bool:
        """Whether rows at t = 1 are inside the guided range."""
        return self.enhanced_range[1] > 1


def split(batch: int, shares: dict[GroupName, float]) -> dict[GroupName, slice]:
    """The rows of each group in a batch: rounded shares, the last group takes what is left.

    Where a group would get none, each gets one, and the rest go to who is furthest short.

    Raises ValueError where there are fewer rows than groups with a share.
    """
    present = [name for name, share in shares.items() if share > 0]
    counts = [round(batch * shares[name]) for name in present[:-1]]
    counts.append(batch - sum(counts))
    if batch < len(present):
        raise ValueError(
            f"a batch of {batch} rows is too small for the groups {present}: one row each at least"
        )
    if min(counts) < 1:
        counts = [1] * len(present)
        for _ in range(batch - len(present)):
            short = [batch * shares[name] - count for name, count in zip(present, counts, strict=True)]
            counts[short.index(max(short))] += 1
    starts = [0, *accumulate(counts)]
    spans = {name: slice(a, b) for name, a, b in zip(present, starts, starts[1:], strict=False)}
    return {name: spans.get(name, slice(0, 0)) for name in shares}


class Rows(NamedTuple):
    """A batch in group order: data, noise, times, target times, and where the groups are."""

    x: Tensor
    z: Tensor
    t: Tensor
    r: Tensor
    groups: dict[GroupName, slice]

    @property
    def real(self) -> slice:
        """All rows that are not of the fake trajectory."""
        adv = self.groups["adv"]
        return slice(0, adv.start if adv.stop else len(self.x))


def draw_times(count: int, settings: Objective, device: torch.device) -> Tensor:
    """Times c Beta(a, b), clamped to 0..1: [count]."""
    a, b, c = settings.times
    if (a, b) == (1, 1):
        return (torch.rand(count, device=device) * c).clamp(0, 1)
    return (torch.distributions.Beta(a, b).sample((count,)).to(device) * c).clamp(0, 1)


def draw_rows(x: Tensor, settings: Objective) -> Rows:
    """Noise, times and targets for data x [B, ...]."""
    groups = split(len(x), settings.shares)
    t, u = draw_times(len(x), settings, x.device), torch.rand(len(x), device=x.device)
    t[groups["e2e"]] = 1.0
    r = losses.far_target(t, u, settings.consistency)
    mul, anywhere, adv = groups["mul"], groups["any"], groups["adv"]
    r[mul] = losses.near_target(t[mul], u[mul], settings.consistency)
    leaps = torch.rand_like(r[anywhere]) < settings.leap_share
    r[anywhere] = torch.where(leaps, torch.zeros_like(r[anywhere]), r[anywhere])
    r[groups["e2e"]] = r[groups["one"]] = 0.0
    t[adv] = -t[adv]
    r[adv] = t[adv]
    return Rows(x, torch.randn_like(x), t, r, groups)
