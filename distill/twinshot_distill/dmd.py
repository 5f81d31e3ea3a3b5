"""DMD2 as a training method to compare with: what one step does with one batch (arXiv 2405.14867).

Three networks beside the generator: the frozen model of the data (real), a model of the generator's samples
(fake), which is trained as well, and a critic that reads the fake network's features. A cycle is one step of
the generator and `fake_updates` of fake network and critic, which must keep up with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from twinshot_distill import dmd_losses, losses
from twinshot_distill.objective import Condition, Network
from twinshot_distill.step import one_step_samples
from twinshot_distill.strictness import STRICT


@dataclass(frozen=True, slots=True)
class DmdObjective:
    """Settings of the method; weights and ratio are those of the authors' SDXL runs.

    Attributes:
        fake_updates: steps of fake network and critic for each of the generator.
        guidance: of the frozen model, v_c + guidance (v_c - v_u), as `enhanced_ratio` of TwinFlow; 0 is none.
        times: between which samples are noised for the matching gradient.
        critic_weight: of the critic's loss, beside the fake network's.
        deceiving_weight: of the generator's loss before the critic, beside the matching.
        critic_depth: share of the fake network's layers that the critic reads.
    """

    __pydantic_config__ = STRICT

    fake_updates: int = 5
    guidance: float = 1.0
    times: tuple[float, float] = (0.02, 0.98)
    critic_weight: float = 0.01
    deceiving_weight: float = 0.005
    critic_depth: float = 0.5

    def __post_init__(self) -> None:
        if self.fake_updates < 1:
            raise ValueError(f"fake_updates {self.fake_updates} must be 1 or more")
        if not 0 < self.critic_depth <= 1:
            raise ValueError(f"critic_depth {self.critic_depth} must be above 0 and at most 1")
        if not 0 <= self.times[0] < self.times[1] <= 1:
            raise ValueError(f"times {self.times} must be two rising numbers between 0 and 1")

    def trains_generator(self, step: int) -> bool:
        """Whether a step is the generator's: the first of each cycle."""
        return step % (1 + self.fake_updates) == 0

    @property
    def work(self) -> float:
        """Forward passes a row, on average over a cycle; a plain flow-matching step is 3.

        The generator's step: 3 for itself, 1 or 2 of the frozen model, 1 of the fake one, and the critic
        there and back. The others: 1 for samples, 3 for the fake network, 3 of the critic on each side.
        """
        generator = 3 + (2 if self.guidance else 1) + 1 + 2 * self.critic_depth
        fake = 1 + 3 + 2 * 3 * self.critic_depth
        return (generator + self.fake_updates * fake) / (1 + self.fake_updates)


Critic = Callable[[Tensor, Tensor, Condition], Tensor]
"""Logits [B] of noised pictures x_t [B, ...] at times t [B] with their condition."""


@dataclass(frozen=True, slots=True)
class DmdNetworks(Generic[Condition]):
    """The generator, the frozen model of the data, the model of the samples, and the critic."""

    generator: Network[Condition]
    real: Network[Condition]
    fake: Network[Condition]
    critic: Critic[Condition]


def generator_terms(
    networks: DmdNetworks[Condition],
    settings: DmdObjective,
    like: Tensor,
    given: Condition,
    empty: Condition,
) -> dict[str, Tensor]:
    """The generator's losses, scalars: `matching` and `deceiving`. Only the generator gets gradients.

    Args:
        networks: see :class:`DmdNetworks`.
        settings: of the method.
        like: data [B, ...] fp32, of which only the shape counts.
        given: captions.
        empty: as many empty captions.
    """
    sample = one_step_samples(networks.generator, given, like)
    gradient = _matching(networks, settings, sample.detach(), given, empty)
    deceiving = _through_critic(networks.critic, sample, given)
    return {
        "matching": dmd_losses.pulled(sample, gradient),
        "deceiving": settings.deceiving_weight * deceiving,
    }


def fake_terms(
    networks: DmdNetworks[Condition], settings: DmdObjective, x: Tensor, given: Condition
) -> dict[str, Tensor]:
    """The losses of fake network and critic, scalars: `fake` and `critic`.

    Args:
        networks: see :class:`DmdNetworks`.
        settings: of the method.
        x: data [B, ...] fp32.
        given: its captions; the generator draws the same ones.
    """
    with torch.no_grad():
        sample = one_step_samples(networks.generator, given, x)
    t, z = torch.rand(len(x), device=x.device), torch.randn_like(x)
    velocity = networks.fake(losses.mix(sample, z, t), t, t, given)
    critic = dmd_losses.critic_loss(
        _judged(networks.critic, x, given), _judged(networks.critic, sample, given)
    )
    return {
        "fake": losses.flow_matching(velocity, sample, z),
        "critic": settings.critic_weight * critic,
    }


@torch.no_grad()
def _matching(
    networks: DmdNetworks[Condition],
    settings: DmdObjective,
    sample: Tensor,
    given: Condition,
    empty: Condition,
) -> Tensor:
    low, high = settings.times
    t = low + (high - low) * torch.rand(len(sample), device=sample.device)
    x_t = losses.mix(sample, torch.randn_like(sample), t)
    real = networks.real(x_t, t, t, given)
    if settings.guidance:
        real = losses.guided(real, networks.real(x_t, t, t, empty), real, settings.guidance)
    return dmd_losses.matching_gradient(sample, x_t, real, networks.fake(x_t, t, t, given), t)


def _judged(critic: Critic[Condition], x: Tensor, given: Condition) -> Tensor:
    """Logits of pictures noised to random times, which keeps the critic from winning at once."""
    t = torch.rand(len(x), device=x.device)
    return critic(losses.mix(x, torch.randn_like(x), t), t, given)


def _through_critic(critic: Critic[Condition], sample: Tensor, given: Condition) -> Tensor:
    """The deceiving loss with its gradient by the samples alone: the critic's weights must get none."""
    leaf = sample.detach().requires_grad_()
    loss = dmd_losses.deceiving_loss(_judged(critic, leaf, given))
    (gradient,) = torch.autograd.grad(loss, leaf)
    along = (sample * gradient).sum()
    return loss.detach() + along - along.detach()
