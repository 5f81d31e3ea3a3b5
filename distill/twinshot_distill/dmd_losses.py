"""DMD2's losses as pure functions on tensors (Yin et al., arXiv 2405.14867; its gradient: arXiv 2311.18828).

A one-step generator is moved by the difference of two scores at its noised samples: of the data, from a
frozen flow model, and of the samples themselves, from a second one that is trained on nothing else; and by a
critic that tells data from samples. Both models are used here by their velocities, on the path and with the
conventions of `losses`: x_t = t z + (1 - t) x, and the data behind it is estimated as x_t - t v.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from twinshot_distill.losses import data_estimate

_SMALLEST_RESIDUAL = 1e-6


@torch.no_grad()
def matching_gradient(sample: Tensor, x_t: Tensor, real: Tensor, fake: Tensor, t: Tensor) -> Tensor:
    """The direction [B, ...] in which samples leave the data: KL gradient of samples to data.

    With both models' estimates of the data behind x_t it is (estimate_fake - estimate_real), divided in each
    row by the mean of |sample - estimate_real|, so that all times count alike (equation 8 of DMD).

    Args:
        sample: what the generator made, [B, ...].
        x_t: the samples noised to times t, [B, ...].
        real: velocity [B, ...] of the frozen model at x_t, with its guidance.
        fake: velocity of the model of the samples there.
        t: [B] in 0..1.
    """
    of_data, of_samples = data_estimate(x_t, real, t), data_estimate(x_t, fake, t)
    size = (sample - of_data).abs().flatten(1).mean(1).clamp_min(_SMALLEST_RESIDUAL)
    return (of_samples - of_data) / size.view(-1, *[1] * (sample.ndim - 1))


def pulled(sample: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose derivative by `sample` is gradient / elements: half the mean square of the step."""
    return 0.5 * (sample - (sample - gradient).detach()).square().mean()


def critic_loss(of_data: Tensor, of_samples: Tensor) -> Tensor:
    """The critic's logits [B] should be high on data and low on samples: the non-saturating GAN loss."""
    return functional.softplus(-of_data).mean() + functional.softplus(of_samples).mean()


def deceiving_loss(of_samples: Tensor) -> Tensor:
    """The generator's side of :func:`critic_loss`: its samples' logits [B] should be high."""
    return functional.softplus(-of_samples).mean()
