"""The autoencoder against diffusers' own."""

import copy
from typing import Any

import diffusers
import pytest
import torch

from twinshot_engine.vae import AutoencoderKL, KLConfig, KLDecoder
from twinshot_engine.vae.folding import fold_upsamplers
from twinshot_engine.vae.kl_blocks import Upsampler

SMALL = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 16, 24, 24),
    "layers_per_block": 2,
    "latent_channels": 8,
    "norm_num_groups": 4,
    "scaling_factor": 0.7,
    "shift_factor": 0.1,
}


def pair(**change: Any) -> tuple[AutoencoderKL, diffusers.AutoencoderKL]:
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(**(SMALL | change)).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    ours = AutoencoderKL(KLConfig.from_dict(dict(theirs.config))).eval()
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("quant", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_equals_diffusers(layout: torch.memory_format, *, attention: bool, quant: bool) -> None:
    ours, theirs = pair(mid_block_add_attention=attention, use_quant_conv=quant, use_post_quant_conv=quant)
    ours.to(memory_format=layout)
    pixels = torch.rand(2, 3, 48, 32) * 2 - 1
    mean, logvar = ours.encode(pixels)
    expected = theirs.encode(pixels).latent_dist
    torch.testing.assert_close(mean, expected.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logvar, expected.logvar, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.decode(mean), theirs.decode(mean).sample, rtol=1e-4, atol=2e-5)


def test_decoder_alone_is_the_same_half() -> None:
    ours, _ = pair()
    half = KLDecoder(ours.config)
    state = {k: v for k, v in ours.state_dict().items() if not k.startswith(KLDecoder.ENCODER_PARAMETERS)}
    half.load_state_dict(state)
    latents = torch.randn(1, 8, 4, 6)
    assert torch.equal(half.decode(latents), ours.decode(latents))
    assert torch.equal(half(latents), ours.decode(latents / 0.7 + 0.1))


def test_normalisation_is_undone() -> None:
    ours, _ = pair()
    raw = torch.randn(1, 8, 4, 6)
    torch.testing.assert_close(ours.denormalize(ours.normalize(raw)), raw)
    torch.testing.assert_close(ours.normalize(raw), (raw - 0.1) * 0.7)


def test_channels_last_stays_channels_last() -> None:
    ours, _ = pair()
    pixels = ours.to(memory_format=torch.channels_last).decode(torch.randn(2, 8, 4, 6))
    assert pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "relu"}, "act_fn 'relu' is not supported"),
        ({"layers_per_block": 0}, "layers_per_block 0 is not at least 1"),
        (
            {"norm_num_groups": 5},
            r"block_out_channels \[8, 16, 24, 24\] must be multiples of norm_num_groups 5",
        ),
        ({"up_block_types": ["AttnUpDecoderBlock2D"]}, "blocks of type"),
        ({"latents_mean": [0.0]}, "latents_mean and latents_std are not supported"),
    ],
)
def test_unsupported_configs_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KLConfig.from_dict(SMALL | change)


def test_absent_keys_take_diffusers_defaults() -> None:
    ours = KLConfig.from_dict({})
    theirs = diffusers.AutoencoderKL().config
    assert (ours.use_quant_conv, ours.scaling_factor) == (theirs.use_quant_conv, theirs.scaling_factor)
    assert (ours.latent_channels, ours.layers_per_block) == (theirs.latent_channels, theirs.layers_per_block)
    assert ours.block_out_channels == tuple(theirs.block_out_channels)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 3), (8, 8)])
def test_folded_upsamplers_draw_the_same_pixels(height: int, width: int) -> None:
    torch.manual_seed(0)
    config = KLConfig(
        latent_channels=4, block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4
    )
    plain = KLDecoder(config).eval().double()
    folded = copy.deepcopy(plain)
    fold_upsamplers(folded.decoder)
    assert not any(isinstance(module, Upsampler) for module in folded.modules())
    latents = torch.randn(2, 4, height, width, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(folded.decode(latents), plain.decode(latents), rtol=1e-10, atol=1e-10)
