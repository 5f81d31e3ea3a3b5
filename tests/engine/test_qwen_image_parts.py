"""The parts of Qwen-Image one by one: decoder, text, positions, table, random weights, and bad configs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope
from qwen_image_checkpoint import (
    TEXT,
    TRANSFORMER,
    VAE,
    shake,
    tiny_configs,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from twinshot_engine import random_weights as random_module
from twinshot_engine.benchmark.compare import compare
from twinshot_engine.benchmark.latency import Job
from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.config import EngineConfig
from twinshot_engine.errors import InvalidRequestError
from twinshot_engine.families.qwen_image import BUCKETS
from twinshot_engine.precision import Projection
from twinshot_engine.random_weights import find_random
from twinshot_engine.text.qwen2_5_vl import find_encoder, read_config
from twinshot_engine.text.template import DROPPED_TOKENS, TemplateTokenizer
from twinshot_engine.transformer.dual_stream import DualStreamTransformer
from twinshot_engine.transformer.dual_stream_config import DualStreamConfig
from twinshot_engine.transformer.dual_stream_positions import JointLayout, JointPositions
from twinshot_engine.transformer.lanes import Lanes
from twinshot_engine.vae.qwen_image import QwenImageDecoder
from twinshot_engine.vae.qwen_image_config import QwenImageVAEConfig

CPU = torch.device("cpu")


def make_vae(**change: Any) -> AutoencoderKLQwenImage:
    torch.manual_seed(0)
    model = AutoencoderKLQwenImage(**(VAE | change)).eval().requires_grad_(requires_grad=False)
    shake(model, 0.05)
    return model


def decoder_of(model: AutoencoderKLQwenImage, dtype: torch.dtype = torch.float32) -> QwenImageDecoder:
    return QwenImageDecoder(
        QwenImageVAEConfig.from_dict(dict(model.config)), dict(model.named_parameters()), dtype
    )


def expected_pixels(model: AutoencoderKLQwenImage, latents: Tensor) -> Tensor:
    """What the pipeline decodes, before it is clamped."""
    mean, deviation = (
        torch.tensor(values, device=latents.device)[:, None, None]
        for values in (model.config.latents_mean, model.config.latents_std)
    )
    z = (latents * deviation + mean).to(next(model.parameters()).dtype).unsqueeze(2)
    model.clear_cache()
    pixels: Tensor = model.decoder(model.post_quant_conv(z), feat_cache=model._feat_map, feat_idx=[0])
    return pixels[:, :, 0]


def far(found: Tensor, reference: Tensor) -> float:
    return float((found.double() - reference.double()).norm() / reference.double().norm())


@pytest.mark.parametrize(
    "change",
    [{}, {"num_res_blocks": 2}, {"dim_mult": [1, 2], "temperal_downsample": [True]}, {"base_dim": 12}],
    ids=str,
)
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 1, 1), (2, 5, 3)])
@torch.inference_mode()
def test_one_frame_is_an_image(change: dict[str, Any], batch: int, height: int, width: int) -> None:
    model = make_vae(**change)
    latents = torch.randn(batch, 8, height, width)
    found, expected = decoder_of(model)(latents), expected_pixels(model, latents)
    assert found.shape == expected.shape
    assert far(found, expected) < 1e-5


@torch.inference_mode()
def test_bytes_are_the_clamped_pixels() -> None:
    decoder = decoder_of(make_vae())
    latents = torch.randn(2, 8, 3, 4)
    images = decoder.decode_to_bytes(latents)
    levels = ((decoder(latents) / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1)
    assert (images.shape, images.dtype) == ((2, 24, 32, 3), torch.uint8)
    assert ((images - levels).abs() <= 0.5 + 1e-4).all()


@torch.inference_mode()
def test_a_decoder_in_bf16_is_as_exact_as_diffusers() -> None:
    model = make_vae(base_dim=32)
    latents = torch.randn(2, 8, 12, 8)
    reference = expected_pixels(model, latents)
    rounded = expected_pixels(copy.deepcopy(model).bfloat16(), latents)
    assert far(decoder_of(model, torch.bfloat16)(latents), reference) < 1.2 * far(rounded, reference)


@pytest.mark.gpu
@torch.inference_mode()
def test_the_published_decoder_on_a_gpu_is_as_exact_as_diffusers() -> None:
    config = {"base_dim": 96, "z_dim": 16, "num_res_blocks": 2, "latents_mean": [0.1] * 16}
    model = make_vae(**config, latents_std=[2.0] * 16).cuda()
    latents = torch.randn(1, 16, 64, 64, device="cuda")
    with torch.backends.cudnn.flags(allow_tf32=False):
        reference = expected_pixels(model, latents)
    decoder = decoder_of(model, torch.bfloat16)
    rounded = expected_pixels(model.bfloat16(), latents)
    assert far(decoder(latents), reference) < 1.2 * far(rounded, reference)
    levels = ((reference / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1)
    assert far(decoder.decode_to_bytes(latents), levels) < 1.2 * far(rounded, reference)


@pytest.mark.parametrize("layout", [(3, 4, 5), (7, 2, 1), (1, 1, 64)])
def test_positions_are_those_of_diffusers(layout: tuple[int, int, int]) -> None:
    config = DualStreamConfig.from_dict(TRANSFORMER)
    table = JointPositions(config).table(JointLayout(*layout), CPU)
    rows, columns, text = layout
    theirs = QwenEmbedRope(10000, list(config.axes_dims_rope), scale_rope=True)
    expected = torch.cat(theirs([(1, rows, columns)], CPU, text))
    torch.testing.assert_close(torch.complex(*table), expected, rtol=1e-6, atol=1e-6)


def test_positions_end() -> None:
    positions = JointPositions(DualStreamConfig.from_dict(TRANSFORMER))
    with pytest.raises(ValueError, match="8x9 patches with 4093 text tokens are not supported"):
        positions.table(JointLayout(8, 9, 4093), CPU)


def test_prompts_stand_behind_what_is_dropped(tokenizer: PreTrainedTokenizerFast) -> None:
    template = TemplateTokenizer(tokenizer, BUCKETS)
    ids = template.encode("a red apple")
    whole = list(template.constant) + ids
    assert len(template.constant) == DROPPED_TOKENS
    assert tokenizer.decode(whole).startswith("<|im_start|>system\nDescribe the image by")
    assert tokenizer.decode(whole).endswith(
        "<|im_start|>user\na red apple<|im_end|>\n<|im_start|>assistant\n"
    )
    padded, length = template.pad(ids)
    assert (padded.shape[1], length.item()) == (128, len(ids))
    assert padded[0, : len(ids)].tolist() == ids
    with pytest.raises(InvalidRequestError, match=r"has \d+ tokens .* limit of 1024"):
        template.encode("x y z " * 1000)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([1, 2, 3], r"3 tokens of '<\|im_start\|>'"),
        ([1], "1 tokens of the system message; at least 34"),
    ],
)
def test_a_tokenizer_of_another_family_is_refused(ids: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=f"makes {said}"):
        TemplateTokenizer(lambda _text, **_options: {"input_ids": ids}, BUCKETS)  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["model.", "model.language_model.", "language_model.model.", ""])
def test_every_versions_names_are_understood(tmp_path: Path, prefix: str) -> None:
    folder = tmp_path / "text_encoder"
    folder.mkdir()
    names = [f"{prefix}norm.weight", f"{prefix}layers.0.mlp.up_proj.weight", "lm_head.weight"]
    names += ["model.visual.merger.ln_q.weight", "visual.blocks.0.norm1.weight"]
    save_file({name: torch.ones(1) for name in names}, folder / "model.safetensors")
    stored = find_encoder(Checkpoint(tmp_path, "folder"))
    read = {name for name in stored.headers if not stored.ignored(name)}
    assert read == {"norm.weight", "layers.0.mlp.up_proj.weight"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance_embeds": True}, "guidance_embeds True is not supported: False is"),
        ({"zero_cond_t": True}, "zero_cond_t True"),
        ({"axes_dims_rope": [4, 6, 8]}, r"axes_dims_rope \(4, 6, 8\) must be 3 even values"),
        ({"in_channels": 33}, "in_channels 33 must be out_channels 8 times the 4"),
        ({"num_layers": 0}, "num_layers 0 is not at least 1"),
        ({"window": 3}, r"unknown keys \['window'\]"),
    ],
)
def test_unsupported_transformers_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DualStreamConfig.from_dict(TRANSFORMER | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported: 'silu' is"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type 'linear' is not supported"),
    ],
)
def test_unsupported_text_encoders_are_named(change: dict[str, Any], message: str) -> None:
    config = {"model_type": "qwen2_5_vl_text", "pad_token_id": 0} | TEXT
    with pytest.raises(ValueError, match=message):
        read_config(config | {"bos_token_id": 1, "eos_token_id": 2} | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents_mean": [0.0]}, "latents_mean has 1 values, not the 8 of z_dim"),
        ({"base_dim": 9}, "widths .* must be even"),
    ],
)
def test_unsupported_decoders_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QwenImageVAEConfig.from_dict(VAE | change | ({"dim_mult": [1, 1]} if "base_dim" in change else {}))


def test_the_streams_overlap_where_weights_are_fp8() -> None:
    with torch.device("meta"):
        transformer = DualStreamTransformer(DualStreamConfig.from_dict(TRANSFORMER))
    assert not transformer.overlaps
    for module in transformer.blocks.modules():
        if isinstance(module, Projection):
            module.quantize()
    assert transformer.overlaps


def test_a_cpu_works_in_both_lanes_in_turn() -> None:
    lanes = Lanes(CPU, parallel=True)
    lanes.fork()
    with lanes.second():
        done = torch.ones(1)
    lanes.join()
    assert done.item() == 1


def test_published_shapes_are_those_of_diffusers() -> None:
    checkpoint = find_random("random:qwen-image")
    with torch.device("meta"):
        theirs = QwenImageTransformer2DModel(**checkpoint.read_json("transformer"))
        vae = AutoencoderKLQwenImage(**checkpoint.read_json("vae"))
    shapes = {name: header.shape for name, header in checkpoint.part("transformer").headers.items()}
    second = {name for name in shapes if name.startswith("time_text_embed_2.")}
    assert len(second) == 4
    assert {name: shape for name, shape in shapes.items() if name not in second} == {
        name: tuple(p.shape) for name, p in theirs.named_parameters()
    }
    decoder = {name: header.shape for name, header in checkpoint.part("vae").headers.items()}
    assert decoder == {
        name: tuple(p.shape)
        for name, p in vae.named_parameters()
        if name.startswith(("decoder.", "post_quant")) and ".time_conv." not in name
    }


def test_a_comparison_with_stock_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_configs(random_module.PUBLISHED["qwen-image"])
    monkeypatch.setattr(random_module, "PUBLISHED", {"tiny": tiny})
    config = EngineConfig("random:tiny", device="cpu", sizes=((256, 256),), steps=(1,))
    job = Job(256, 256, tokens=64, samples=2, warm=0)
    systems = compare(
        find_random("random:tiny"), [config], job, lambda _image: b"", lambda _what: None, compiled=False
    )
    ours, stock = ({row["part"]: row for row in rows} for rows in systems)
    assert ours["denoise"]["denoise_error"] < 1e-5
    assert ours["decode"]["decode_levels"] < 0.01
    assert 1e-4 < stock["denoise"]["denoise_error"] < 0.1
