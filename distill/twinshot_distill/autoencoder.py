"""Stage 1: the autoencoder, 256 px pictures to 32x32x8 latents and back.

L1 in pixels, in their gradients (edges) and in 4x4 means (colours), a little squared error, a weak KL
term. Latents are brought to unit variance a channel by scaling weights afterwards, so that the published
layout's single scaling factor is enough.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from twinshot_distill.configuration import VAE, AutoencoderSettings
from twinshot_distill.dataset import Corpus
from twinshot_distill.optimizer import Average, Clock, Optimizer
from twinshot_distill.report import say
from twinshot_distill.world.composer import Composer
from twinshot_engine.vae.kl import AutoencoderKL
from twinshot_engine.vae.kl_config import KLConfig

_MEAN_WEIGHT = 0.01


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


def _latent_loss(mean: Tensor, logvar: Tensor, kl_weight: float) -> Tensor:
    """KL to a unit normal, and a pull of each channel's mean to 0 that needs no shift afterwards."""
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return kl_weight * kl + _MEAN_WEIGHT * mean.mean((0, 2, 3)).square().mean()


def train_autoencoder(
    corpus: Corpus, composer: Composer, settings: AutoencoderSettings, *, compiled: bool
) -> AutoencoderKL:
    """Train from scratch; returns the averaged weights with unit-variance latents."""
    device = composer.device
    model = channels_last(new_autoencoder().to(device))
    average = Average(model, settings.ema)
    optimizer = Optimizer([], model.parameters(), learning_rate=settings.learning_rate, warm_up=100)
    encode = torch.compile(model.encode) if compiled else model.encode
    decode = torch.compile(model.decode) if compiled else model.decode
    clock = Clock("autoencoder", settings.seconds)
    for step in clock.steps():
        rows = torch.arange(step * settings.batch, (step + 1) * settings.batch).numpy() % len(corpus)
        pictures = composer.render(corpus.scenes[rows]).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            mean, logvar = encode(pictures)
            mean, logvar = mean.float(), logvar.float()
            noise = torch.randn_like(mean)
            sample = mean + noise * (torch.exp(0.5 * logvar) + settings.latent_noise * mean.detach().std())
            restored = decode(sample)
        pixels = reconstruction_loss(restored, pictures)
        loss = pixels + _latent_loss(mean, logvar, settings.kl_weight)
        optimizer.step(loss, step, clock.progress)
        average.update()
        clock.report(settings.batch, loss=loss.detach(), psnr=psnr(restored.detach(), pictures))
    trained: AutoencoderKL = average.module
    _standardise(trained, corpus, composer)
    return trained


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
