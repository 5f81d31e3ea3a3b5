"""DC-AE lite, a decoder for SANA whose last convolution doubles the size, draws what diffusers' does."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, SanaSprintPipeline
from tiny_sana import LITE, SPRINT, write
from torch import Tensor

from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.errors import CheckpointError
from twinshot_engine.types import GenerateRequest
from twinshot_engine.vae.deep_compression import DeepCompressionDecoder
from twinshot_engine.vae.deep_compression_config import DeepCompressionConfig
from twinshot_engine.vae.deep_compression_stored import StoredDeepCompression

SIDE, SEED = 256, 11


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("lite"), SPRINT, sprint=True, vae_config=LITE)


def serving(reference: AutoencoderDC) -> DeepCompressionDecoder:
    """The engine's decoder with the weights of diffusers' module."""
    stored = StoredDeepCompression(DeepCompressionConfig.from_dict(reference.config))
    weights = reference.state_dict()
    stored.load_state_dict({name: w for name, w in weights.items() if not name.startswith("encoder.")})
    return DeepCompressionDecoder(stored, torch.float32)


def far(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("upsampling", ["pixel_shuffle", "interpolate"])
def test_its_decoder_is_diffusers(activation: str, upsampling: str) -> None:
    torch.manual_seed(3)
    config = LITE | {"decoder_conv_act_fn": activation, "upsample_block_type": upsampling}
    reference, latents = AutoencoderDC(**config), torch.randn(2, 4, 3, 5)
    decoder, expected = serving(reference), reference.decode(latents / LITE["scaling_factor"]).sample
    assert expected.shape == (2, 3, 96, 160)
    assert far(decoder(latents), expected) < 1e-5
    exact = (expected.clamp(-1, 1) + 1) * 127.5
    assert (decoder.decode_to_bytes(latents).permute(0, 3, 1, 2) - exact).abs().max() < 0.51


def test_a_checkpoint_with_it_is_served(lite: Path) -> None:
    pipeline = SanaSprintPipeline.from_pretrained(lite, dtype=torch.float32)
    pipeline.text_encoder.set_attn_implementation("eager")
    pipeline.set_progress_bar_config(disable=True)
    engine = Engine.load(EngineConfig(str(lite), device="cpu"))
    drawn = pipeline(
        "a red apple",
        num_inference_steps=1,
        intermediate_timesteps=None,
        width=SIDE,
        height=SIDE,
        generator=torch.Generator("cpu").manual_seed(SEED),
        use_resolution_binning=False,
    ).images[0]
    image = engine.generate([GenerateRequest("a red apple", SEED, SIDE, SIDE, 1)]).images[0]
    assert np.abs(image.astype(int) - np.asarray(drawn).astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ('"decoder_conv_act_fn": "gelu"', "conv_act_fn 'gelu' is not supported: relu and silu are"),
        (
            '"decoder_layers_per_block": [1, 3, 5, 4, 4, 4]',
            r"conv_act_fn 'silu' is only supported where layers_per_block begins with 0, and it is \(1, 3,",
        ),
    ],
)
def test_an_activation_that_is_not_there_is_refused(
    lite: Path, tmp_path: Path, values: str, said: str
) -> None:
    folder = Path(shutil.copytree(lite, tmp_path / "copy"))
    config = folder / "vae" / "config.json"
    config.write_text(config.read_text().rstrip().removesuffix("}") + f", {values}}}")
    with pytest.raises(CheckpointError, match=said):
        Engine.load(EngineConfig(str(folder), device="cpu"))
