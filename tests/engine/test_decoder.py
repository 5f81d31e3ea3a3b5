"""The decoder's serving forms against diffusers' own decoder."""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from twinshot_engine.vae.folding import fold_upsamplers, folded_kernel
from twinshot_engine.vae.fused import FusedDecoder
from twinshot_engine.vae.fused_blocks import FusedAttention, FusedUpsampler
from twinshot_engine.vae.kl import KLDecoder
from twinshot_engine.vae.kl_blocks import MidAttention, Upsampler
from twinshot_engine.vae.kl_config import KLConfig
from twinshot_engine.vae.serving import serving_decoder

SMALL = {
    "block_out_channels": (8, 16, 24, 24),
    "layers_per_block": 2,
    "latent_channels": 8,
    "norm_num_groups": 4,
    "scaling_factor": 0.7,
    "shift_factor": 0.1,
    "use_post_quant_conv": False,
}


def theirs(**change: Any) -> diffusers.AutoencoderKL:
    config = SMALL | change
    levels = len(config["block_out_channels"])
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        **config,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    ).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def ours(model: diffusers.AutoencoderKL) -> KLDecoder:
    decoder = KLDecoder(KLConfig.from_dict(dict(model.config))).eval()
    names = decoder.state_dict().keys()
    decoder.load_state_dict({k: v for k, v in model.state_dict().items() if k in names})
    return decoder.requires_grad_(requires_grad=False)


def expected(model: diffusers.AutoencoderKL, latents: Tensor) -> Tensor:
    pixels: Tensor = model.decode(latents / model.config.scaling_factor + model.config.shift_factor).sample
    return pixels


def relative_error(found: Tensor, reference: Tensor) -> float:
    return float((found.double() - reference.double()).norm() / reference.double().norm())


def latents_of(channels: int = 8, batch: int = 1, height: int = 6, width: int = 6) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


CONFIGS = [
    {},
    {"block_out_channels": (8, 8, 8, 8)},
    {"block_out_channels": (8, 16)},
    {"block_out_channels": (24, 8, 16)},
    {"block_out_channels": (16,)},
    {"layers_per_block": 1},
    {"layers_per_block": 3, "block_out_channels": (12, 20, 28), "norm_num_groups": 2},
    {"mid_block_add_attention": False},
    {"use_post_quant_conv": True},
    {"use_post_quant_conv": True, "latent_channels": 3, "shift_factor": None},
    {"out_channels": 1},
    {"norm_num_groups": 8},
]


@pytest.mark.parametrize("change", CONFIGS, ids=str)
@torch.inference_mode()
def test_every_config_draws_diffusers_pixels(change: dict[str, Any]) -> None:
    model = theirs(**{key: value for key, value in change.items() if value is not None})
    fused = FusedDecoder(ours(model))
    latents = latents_of(fused.config.latent_channels, batch=2, height=5, width=7)
    reference = expected(model, latents)
    found = fused(latents)
    assert found.shape == reference.shape
    assert relative_error(found, reference) < 1e-5
    torch.testing.assert_close(found, reference, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("batch", "height", "width"), [(1, 1, 1), (1, 8, 8), (3, 5, 3), (1, 1, 9), (2, 9, 1)]
)
@torch.inference_mode()
def test_every_size_draws_diffusers_pixels(batch: int, height: int, width: int) -> None:
    model = theirs()
    latents = latents_of(batch=batch, height=height, width=width)
    found = FusedDecoder(ours(model))(latents)
    torch.testing.assert_close(found, expected(model, latents), rtol=1e-4, atol=2e-5)


@torch.inference_mode()
def test_two_projections_attend_as_four() -> None:
    layer = MidAttention(16, 4)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn_like(parameter) / (4 if parameter.dim() == 2 else 1))
    x = torch.randn(2, 16, 5, 3)
    found, _ = FusedAttention(layer, torch.float32)(x, None)
    torch.testing.assert_close(found, layer(x), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_bf16_is_as_exact_as_diffusers() -> None:
    model = theirs(block_out_channels=(32, 32, 64, 64), norm_num_groups=8)
    fused = FusedDecoder(ours(model), torch.bfloat16)
    latents = latents_of(batch=2, height=12, width=8)
    reference = expected(model, latents)
    # Their latents are scaled in fp32, so that the networks alone are compared.
    raw = latents / model.config.scaling_factor + model.config.shift_factor
    rounded = copy.deepcopy(model).bfloat16().decode(raw.bfloat16()).sample
    assert relative_error(fused(latents), reference) < 1.2 * relative_error(rounded, reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_bytes_are_the_pixels_rounded(dtype: torch.dtype) -> None:
    fused = FusedDecoder(ours(theirs()), dtype)
    latents = latents_of(batch=3, height=2, width=5)
    images = fused.decode_to_bytes(latents)
    assert (images.shape, images.dtype, images.is_contiguous()) == ((3, 16, 40, 3), torch.uint8, True)
    levels = ((fused(latents) / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1)
    assert ((images - levels).abs() <= 0.5 + 1e-4).all()


@torch.inference_mode()
def test_latents_of_any_layout_and_type_mean_the_same() -> None:
    fused = FusedDecoder(ours(theirs()))
    latents = latents_of(batch=2, height=4, width=6).bfloat16()
    straight = fused(latents.float())
    torch.testing.assert_close(fused(latents.float().contiguous(memory_format=torch.channels_last)), straight)
    torch.testing.assert_close(fused(latents.double().mT.contiguous().mT), straight, rtol=1e-4, atol=1e-4)
    assert relative_error(fused(latents), straight) < 1e-2


@torch.inference_mode()
def test_an_image_does_not_depend_on_its_batch() -> None:
    fused = FusedDecoder(ours(theirs()))
    latents = latents_of(batch=3, height=4, width=4)
    torch.testing.assert_close(fused(latents)[1:2], fused(latents[1:2]), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_latents_and_decoder_are_left_as_they_were() -> None:
    decoder = ours(theirs(use_post_quant_conv=True))
    before = copy.deepcopy(decoder.state_dict())
    latents = latents_of()
    kept = latents.clone()
    FusedDecoder(decoder, torch.bfloat16).decode_to_bytes(latents)
    assert torch.equal(latents, kept)
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())


def test_weights_are_folded_before_they_are_rounded() -> None:
    upsampler = Upsampler(8).requires_grad_(requires_grad=False)
    layer = FusedUpsampler(upsampler, torch.bfloat16)
    assert torch.equal(layer.weight, folded_kernel(upsampler.conv.weight).bfloat16())
    assert not torch.equal(layer.weight, folded_kernel(upsampler.conv.weight.bfloat16()))


def test_a_folded_kernel_doubles_and_convolves() -> None:
    weight, x = torch.randn(5, 3, 3, 3, dtype=torch.float64), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    doubled = functional.conv2d(functional.interpolate(x, scale_factor=2.0), weight, padding=1)
    transposed = functional.conv_transpose2d(x, folded_kernel(weight), stride=2, padding=1)
    torch.testing.assert_close(transposed, doubled)


def test_a_folded_decoder_is_refused() -> None:
    decoder = ours(theirs())
    fold_upsamplers(decoder.decoder)
    with pytest.raises(TypeError, match="type FoldedUpsampler; accepted: Upsampler"):
        FusedDecoder(decoder)


@pytest.mark.gpu
@torch.inference_mode()
def test_published_size_on_a_gpu_is_as_exact_as_diffusers() -> None:
    published = KLConfig()
    model = theirs(
        block_out_channels=published.block_out_channels,
        layers_per_block=published.layers_per_block,
        latent_channels=published.latent_channels,
        norm_num_groups=published.norm_num_groups,
    ).cuda()
    latents = latents_of(16, height=64, width=64).cuda()
    with torch.backends.cudnn.flags(allow_tf32=False):
        reference = expected(model, latents)
    fused = FusedDecoder(ours(model).cuda(), torch.bfloat16)
    raw = latents / model.config.scaling_factor + model.config.shift_factor
    allowed = 1.2 * relative_error(model.bfloat16().decode(raw.bfloat16()).sample, reference)
    assert relative_error(fused(latents), reference) < allowed
    levels = ((reference / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1)
    assert relative_error(fused.decode_to_bytes(latents), levels) < allowed


@pytest.mark.gpu
@torch.inference_mode()
def test_a_graph_replays_what_eager_draws() -> None:
    fused = FusedDecoder(
        ours(theirs(block_out_channels=(32, 64, 64), norm_num_groups=8)).cuda(), torch.bfloat16
    )
    latents = latents_of(batch=2, height=16, width=24).cuda()
    for _ in range(3):
        eager = fused.decode_to_bytes(latents)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = fused.decode_to_bytes(latents)
    kept = latents.clone()
    latents.normal_()
    graph.replay()
    assert (replayed.int() - eager.int()).abs().max() > 1
    latents.copy_(kept)
    graph.replay()
    assert (replayed.int() - eager.int()).abs().max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_the_serving_form_of_a_cpu_is_the_decoder_itself(dtype: torch.dtype) -> None:
    model = theirs()
    decoder = serving_decoder(ours(model), dtype)
    assert isinstance(decoder, KLDecoder)
    latents = latents_of(batch=2, height=4, width=6)
    found = decoder(latents)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(found, expected(model, latents)) < (1e-5 if dtype == torch.float32 else 5e-2)
    images = decoder.decode_to_bytes(latents)
    levels = ((found.float() / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1)
    assert ((images - levels).abs() <= 0.5 + 1e-4).all()
