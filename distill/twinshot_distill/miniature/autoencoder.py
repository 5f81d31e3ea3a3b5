"""Stage 1: the autoencoder, 256 px pictures to 32x32x8 latents and back.

L1 in pixels, in their gradients (edges) and in 4x4 means (colours), a little squared error, SSIM's structure
for what is faint, a weak KL term. Noise on the latents makes the encoder give each detail as much of them as
it counts, so that a transformer's errors cost little. Latents are brought to unit variance a channel by
scaling weights afterwards, so that the published layout's single scaling factor is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from twinshot_distill.averages import RunningAverage, frozen_copy, parameters_of
from twinshot_distill.miniature.configuration import VAE, AutoencoderSettings, Run
from twinshot_distill.miniature.dataset import Corpus
from twinshot_distill.miniature.stages import train_stage
from twinshot_distill.miniature.start import start_autoencoder
from twinshot_distill.report import say
from twinshot_distill.world.composer import SIDE, Composer
from twinshot_engine.vae.kl import AutoencoderKL
from twinshot_engine.vae.kl_config import KLConfig

_MEAN_WEIGHT = 0.01
_WINDOW, _STRIDE = 16, 4
_FAINT = (4 / 255) ** 2
"""Variance in -1..1 of two grey levels: what is flatter has no structure to be like."""


def new_autoencoder() -> AutoencoderKL:
    """The miniature's autoencoder with fresh weights."""
    return AutoencoderKL(KLConfig.from_dict(VAE))


def channels_last(autoencoder: AutoencoderKL) -> AutoencoderKL:
    """The autoencoder with its weights laid out as convolutions like them best."""
    moved: AutoencoderKL = autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def reconstruction_loss(restored: Tensor, pictures: Tensor) -> Tensor:
    """How far [B, 3, H, W] pictures are from their originals: a scalar."""
    error = restored.float() - pictures
    across, down = error.diff(dim=-1).abs().mean(), error.diff(dim=-2).abs().mean()
    colours = F.avg_pool2d(error, 4).abs().mean()
    return error.abs().mean() + 0.5 * (across + down) + 0.5 * colours + 2 * error.square().mean()


def structure_loss(restored: Tensor, pictures: Tensor) -> Tensor:
    """How unlike the details of [B, 3, H, W] pictures in -1..1 are, faint ones as much as strong: a scalar.

    The contrast and structure factors of SSIM (Wang et al. 2004, equation 6 without the luminance), in
    windows of 16 x 16: black and white objects have their shading alone, which pixel errors hardly count.
    """
    restored, pictures = restored.float(), pictures.float()

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, _WINDOW, _STRIDE)

    ours, theirs = mean(restored), mean(pictures)
    variances = mean(restored.square()) - ours.square() + mean(pictures.square()) - theirs.square()
    covariance = mean(restored * pictures) - ours * theirs
    return 1 - ((2 * covariance + _FAINT) / (variances + _FAINT)).mean()


def _latent_loss(mean: Tensor, logvar: Tensor, kl_weight: float) -> Tensor:
    """KL to a unit normal, and a pull of each channel's mean to 0 that needs no shift afterwards."""
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return kl_weight * kl + _MEAN_WEIGHT * mean.mean((0, 2, 3)).square().mean()


class AutoencoderTrainee:
    """The model of stage 1 and one training step."""

    def __init__(
        self,
        model: AutoencoderKL,
        corpus: Corpus,
        composer: Composer,
        settings: AutoencoderSettings,
        *,
        compiled: bool,
    ) -> None:
        self._corpus, self._composer, self._settings = corpus, composer, settings
        self.model = channels_last(model.to(composer.device))
        self.averaged = frozen_copy(self.model)
        self._average = RunningAverage.of(self.averaged, self.model, settings.ema)
        self._encode = torch.compile(self.model.encode) if compiled else self.model.encode
        self._decode = torch.compile(self.model.decode) if compiled else self.model.decode
        pictures = torch.empty(settings.batch, 3, SIDE, SIDE, device=composer.device)
        self._pictures = pictures.contiguous(memory_format=torch.channels_last)

    def loss_terms(self, step: int) -> Mapping[str, Tensor]:
        """Reconstruct the next scenes of the corpus."""
        return self.terms(self.prepare(step))

    def prepare(self, step: int) -> int:
        """Draw the next scenes; all steps are of one kind."""
        batch = self._settings.batch
        rows = np.arange(step * batch, (step + 1) * batch) % len(self._corpus)
        self._pictures.copy_(self._composer.render(self._corpus.scenes[rows]))
        return 0

    def terms(self, kind: int) -> Mapping[str, Tensor]:
        """The loss on the scenes last drawn."""
        del kind
        pictures, settings = self._pictures, self._settings
        with torch.autocast(pictures.device.type, torch.bfloat16):
            mean, logvar = self._encode(pictures)
            mean, logvar = mean.float(), logvar.float()
            noise = torch.rand(len(mean), 1, 1, 1, device=mean.device) * settings.latent_noise
            spread = torch.exp(0.5 * logvar) + noise * mean.detach().std((0, 2, 3), keepdim=True)
            restored = self._decode(mean + torch.randn_like(mean) * spread)
        pixels = reconstruction_loss(restored, pictures)
        structure = settings.structure * structure_loss(restored, pictures)
        latents = _latent_loss(mean, logvar, settings.kl_weight)
        return {"pixels": pixels, "structure": structure, "latents": latents}

    def after_step(self) -> None:
        """Average the weights."""
        self._average.update()

    def tensors(self) -> Mapping[str, Tensor]:
        """The model and its average."""
        return parameters_of(model=self.model, average=self.averaged)

    def numbers(self) -> Mapping[str, float]:
        """How far the average is."""
        return {"decay": self._average.decay}

    def restore(self, numbers: Mapping[str, float]) -> None:
        """Take up numbers of an earlier state."""
        self._average.decay = numbers["decay"]


def train_autoencoder(corpus: Corpus, composer: Composer, run: Run, out: Path) -> AutoencoderKL:
    """Train from fresh or given weights, or from an interrupted run's state in `out`.

    Returns the averaged weights with unit-variance latents.
    """
    model = new_autoencoder()
    if run.start:
        start_autoencoder(model, Path(run.start))
    trainee = AutoencoderTrainee(model, corpus, composer, run.autoencoder, compiled=run.compiled)
    train_stage("autoencoder", trainee, dict(trainee.model.named_parameters()), run.autoencoder, run, out)
    _standardise(trainee.averaged, corpus, composer)
    return trainee.averaged


def psnr(restored: Tensor, pictures: Tensor) -> Tensor:
    """Mean peak signal-to-noise ratio in dB of pictures in -1..1."""
    error = (restored.float().clamp(-1, 1) - pictures).square().flatten(1).mean(1)
    return (10 * torch.log10(4 / error.clamp_min(1e-10))).mean()


@torch.no_grad()
def _standardise(model: AutoencoderKL, corpus: Corpus, composer: Composer) -> None:
    """Scale the encoder's output and the decoder's input so that each latent channel has variance 1."""
    batches = [
        composer.render(corpus.scenes[start : start + 64]) for start in range(0, min(1024, len(corpus)), 64)
    ]
    means = torch.cat([model.encode(pictures)[0] for pictures in batches])
    spread = means.std((0, 2, 3))
    channels = model.config.latent_channels
    model.encoder.conv_out.weight[:channels] /= spread[:, None, None, None]
    model.encoder.conv_out.bias[:channels] /= spread  # type: ignore[index]
    model.encoder.conv_out.bias[channels:] -= 2 * spread.log()  # type: ignore[index]
    model.decoder.conv_in.weight *= spread[None, :, None, None]
    restored = torch.cat([model.decode(model.encode(pictures)[0]) for pictures in batches[:1]])
    quality = float(psnr(restored, torch.cat(batches[:1])))
    say(f"autoencoder: psnr {quality:.2f} dB, latent std was {_rounded(spread)}")
    say(f"autoencoder: latent mean is {_rounded(means.mean((0, 2, 3)) / spread)}")


def _rounded(values: Tensor) -> list[float]:
    return [round(float(value), 3) for value in values]
