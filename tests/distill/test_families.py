"""The families on diffusers' modules, tiny: both times, gradients, copies, stored names, encoders."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
)
from tiny_checkpoint import TRANSFORMER
from torch import Tensor, nn

from twinshot_distill.families.base import Caption, OpenModel
from twinshot_distill.families.diffusers_model import DiffusersModel, PipelineEncoders, open_diffusers
from twinshot_distill.families.qwen_image import FAMILY as QWEN
from twinshot_distill.families.qwen_image import QwenImageModel
from twinshot_distill.families.sana import FAMILY as SANA
from twinshot_distill.families.sana import SanaModel
from twinshot_distill.families.stable_diffusion_3 import FAMILY as SD3
from twinshot_distill.families.stable_diffusion_3 import StableDiffusion3Model
from twinshot_distill.families.stable_diffusion_3 import scale as sd3_scale
from twinshot_distill.families.z_image import FAMILY as Z_IMAGE
from twinshot_distill.families.z_image import ZImageModel
from twinshot_distill.lora import LoraSettings, add_adapters
from twinshot_distill.sharding import recompute_blocks
from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.families import FAMILIES
from twinshot_engine.transformer import SingleStreamConfig, SingleStreamTransformer


def qwen() -> nn.Module:
    return QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(4, 6, 6),
    )


def sana() -> nn.Module:
    return SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=8,
        sample_size=8,
    )


def sd3() -> nn.Module:
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=32,
        pooled_projection_dim=6,
        out_channels=4,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


CASES: dict[str, tuple[Any, type[DiffusersModel], Any]] = {
    "qwen": (qwen, QwenImageModel, QWEN),
    "sana": (sana, SanaModel, SANA),
    "sd3": (sd3, StableDiffusion3Model, SD3),
}


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> tuple[Any, type[DiffusersModel], Any]:
    return CASES[request.param]


def z_image() -> OpenModel:
    config = TRANSFORMER | {"cap_feat_dim": 8, "second_time_embedder": False}
    transformer = SingleStreamTransformer(SingleStreamConfig.from_dict(config))
    transformer.init_weights()
    return ZImageModel(shaken(transformer), single_time=True)


def inputs() -> tuple[Tensor, Tensor, Tensor, Caption]:
    torch.manual_seed(5)
    caption = Caption(torch.randn(2, 7, 8), torch.tensor([7, 4]), torch.randn(2, 6))
    return torch.randn(2, 4, 8, 8), torch.tensor([0.9, -0.4]), torch.tensor([0.3, -0.4]), caption


def built(case: tuple[Any, type[DiffusersModel], Any], *, single_time: bool = False) -> OpenModel:
    torch.manual_seed(0)
    return case[1](shaken(case[0]()), single_time=single_time)


def shaken(transformer: nn.Module) -> nn.Module:
    for parameter in transformer.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return transformer


@pytest.mark.parametrize(
    ("name", "pipeline"),
    [("qwen", "QwenImagePipeline"), ("sana", "SanaPipeline"), ("sd3", "StableDiffusion3Pipeline")],
)
def test_parameters_are_those_that_the_engine_serves(name: str, pipeline: str) -> None:
    trained = built(CASES[name]).transformer
    config = {**dict(trained.config), "second_time_embedder": True}  # type: ignore[arg-type]
    with torch.device("meta"):
        stored = FAMILIES[pipeline].open_forms["transformer"](config)
    shapes = [{n: t.shape for n, t in module.state_dict().items()} for module in (trained, stored)]
    assert shapes[0] == shapes[1]


def test_the_second_time_counts_by_its_distance(case: tuple[Any, type[DiffusersModel], Any]) -> None:
    model = built(case)
    x, t, r, caption = inputs()
    with torch.no_grad():
        both, own = model(x, t, r, caption), model(x, t, t, caption)
        stock = model.predict(x, t * case[1].time_scale, caption)  # type: ignore[operator]
    assert both.shape == x.shape
    torch.testing.assert_close(own, stock)
    assert not torch.allclose(both[0], own[0])
    torch.testing.assert_close(both[1], own[1])


def test_the_second_embedders_formula() -> None:
    """E1(t) + E2(r) (t - r), as the released Qwen-Image reads it, seen from behind the embedder."""
    model = built(CASES["qwen"])
    x, t, r, caption = inputs()
    embedder = model.transformer.get_submodule("time_text_embed")
    second = model.transformer.get_submodule("time_text_embed_2")
    seen: list[Tensor] = []
    handle = model.transformer.get_submodule("norm_out").register_forward_pre_hook(
        lambda _module, args: seen.append(args[1])
    )
    with torch.no_grad():
        model(x, t, r, caption)
        handle.remove()
        hidden = torch.zeros(2, 1)
        expected = embedder(t, hidden) + second(r, hidden) * (t - r)[:, None]
    torch.testing.assert_close(seen[0], expected)


def test_one_time_stands_for_two_in_the_lora_variant(case: tuple[Any, type[DiffusersModel], Any]) -> None:
    model = built(case, single_time=True)
    assert not any("_2." in name and "embed_2" in name for name, _ in model.named_parameters())
    x, t, r, caption = inputs()
    with torch.no_grad():
        stock = model.predict(x, (t - r / 2) * case[1].time_scale, caption)  # type: ignore[operator]
        torch.testing.assert_close(model(x, t, r, caption), stock)


def test_a_copy_has_its_own_second_embedder(case: tuple[Any, type[DiffusersModel], Any]) -> None:
    model = built(case)
    copy = deepcopy(model)
    x, t, r, caption = inputs()
    with torch.no_grad():
        before = copy(x, t, r, caption)
        second = model.transformer.get_submodule(f"{case[1].embedder_name}_2")
        for parameter in second.parameters():
            parameter.add_(1.0)
        torch.testing.assert_close(copy(x, t, r, caption), before)
        assert not torch.allclose(model(x, t, r, caption)[0], before[0])


def test_gradients_reach_everything_and_survive_recomputing(
    case: tuple[Any, type[DiffusersModel], Any],
) -> None:
    x, t, r, caption = inputs()
    kept, again = built(case), built(case)
    recompute_blocks(again)
    for model in (kept, again):
        torch.autograd.backward(model(x, t, r, caption).square().mean())
    for (name, one), two in zip(kept.named_parameters(), again.parameters(), strict=True):
        # Whatever the last block makes of the caption is never read.
        if one.grad is None or two.grad is None:
            assert one.grad is two.grad, name
        else:
            torch.testing.assert_close(one.grad, two.grad)
    second = dict(kept.transformer.get_submodule(f"{case[1].embedder_name}_2").named_parameters())
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in second.items() if n.endswith("weight")
    )


@pytest.mark.parametrize("name", [*CASES, "z-image"])
def test_the_familys_own_layers_get_adapters(name: str) -> None:
    model = z_image() if name == "z-image" else built(CASES[name], single_time=True)
    targets = Z_IMAGE.lora_targets if name == "z-image" else CASES[name][2].lora_targets
    assert add_adapters(model.transformer, LoraSettings(2, 2.0), targets) > 8
    x, t, r, caption = inputs()
    if name == "z-image":  # whose captions have whole multiples of 32 tokens
        caption = Caption(nn.functional.pad(caption.tokens, (0, 0, 0, 25)), caption.lengths)
    torch.autograd.backward(model(x, t, r, caption).square().mean())
    ups = {n: p for n, p in model.named_parameters() if "default_up" in n and "blocks.1." not in n}
    assert all(p.grad is not None for p in ups.values())


def test_a_stored_second_embedder_is_read_and_a_missing_one_made(
    tmp_path: Path, case: tuple[Any, type[DiffusersModel], Any]
) -> None:
    make, model_class, _ = case
    torch.manual_seed(1)
    transformer = make()
    transformer.save_pretrained(tmp_path / "transformer")
    checkpoint = Checkpoint(tmp_path, "tiny")
    fresh = open_diffusers(model_class, type(transformer), checkpoint, single_time=False)
    name = f"{model_class.embedder_name}_2"
    first = fresh.transformer.get_submodule(model_class.embedder_name).state_dict()
    second = fresh.transformer.get_submodule(name).state_dict()
    copied = all(torch.equal(first[key], second[key]) for key in first)
    assert copied == model_class.copies
    if not copied:
        assert all(not value.any() for key, value in second.items() if key.endswith("bias"))
    with torch.no_grad():
        for parameter in fresh.transformer.get_submodule(name).parameters():
            parameter.fill_(0.25)
    from safetensors.torch import save_file

    save_file(
        {key: value.contiguous() for key, value in fresh.transformer.state_dict().items()},
        tmp_path / "transformer" / "diffusion_pytorch_model.safetensors",
    )
    again = open_diffusers(model_class, type(transformer), checkpoint, single_time=False)
    assert all((p == 0.25).all() for p in again.transformer.get_submodule(name).parameters())
    assert json.loads((tmp_path / "transformer" / "config.json").read_text())


def test_encoders_bring_latents_to_the_transformers_scale() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=1.5,
        shift_factor=0.25,
    ).requires_grad_(requires_grad=False)

    class Pipeline:
        pass

    pipeline: Any = Pipeline()
    pipeline.vae = vae
    encoders = PipelineEncoders(pipeline, lambda _p, _w: [], sd3_scale)
    picture = torch.rand(1, 3, 16, 16)
    latents = encoders.encode(picture)
    torch.testing.assert_close(latents, (vae.encode(picture).latent_dist.mode() - 0.25) * 1.5)
    torch.testing.assert_close(encoders.decode(latents), vae.decode(latents / 1.5 + 0.25).sample)
