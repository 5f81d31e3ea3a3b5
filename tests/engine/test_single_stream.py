"""The transformer against diffusers' own, and TwinFlow's second time embedder against a formula."""

import math
from typing import Any

import pytest
import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor, nn

from twinshot_engine.transformer import SingleStreamConfig, SingleStreamTransformer

WIDE = {
    "in_channels": 8,
    "dim": 64,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 24,
    "axes_dims": [8, 12, 12],
    "axes_lens": [512, 64, 64],
}
DEEP = WIDE | {
    "all_patch_size": [2],
    "all_f_patch_size": [1],
    "in_channels": 3,
    "dim": 90,
    "n_layers": 3,
    "n_refiner_layers": 2,
    "n_heads": 3,
    "n_kv_heads": 3,
    "norm_eps": 1e-3,
    "qk_norm": False,
    "rope_theta": 100.0,
    "t_scale": 500.0,
    "axes_dims": [6, 10, 14],
}


def shake(module: nn.Module, std: float) -> None:
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=std)


def build(config: dict[str, Any], *, second: bool = True) -> SingleStreamTransformer:
    torch.manual_seed(0)
    model = SingleStreamTransformer(SingleStreamConfig.from_dict(config | {"second_time_embedder": second}))
    # Without query and key norms larger weights saturate the softmax and magnify every rounding error.
    shake(model, 0.2 if model.config.qk_norm else 0.05)
    return model.eval()


def inputs(
    config: dict[str, Any], size: tuple[int, int], tokens: int, lengths: list[int]
) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    latents = torch.randn(len(lengths), config["in_channels"], *size)
    return latents, torch.randn(len(lengths), tokens, config["cap_feat_dim"]), torch.tensor(lengths)


def far(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("config", [WIDE, DEEP], ids=["wide", "deep"])
@pytest.mark.parametrize(
    ("size", "tokens", "lengths"),
    [((32, 32), 32, [9]), ((10, 14), 64, [40, 64, 33]), ((6, 18), 96, [65, 96]), ((2, 2), 32, [1, 32])],
)
@torch.no_grad()
def test_equals_diffusers(
    config: dict[str, Any], size: tuple[int, int], tokens: int, lengths: list[int]
) -> None:
    ours = build(config, second=False)
    theirs = ZImageTransformer2DModel(**config).eval()
    theirs.load_state_dict(ours.state_dict())
    latents, embeddings, counts = inputs(config, size, tokens, lengths)
    t = torch.linspace(0.9, 0.2, len(lengths))
    result = ours(latents, ours.embed_time(t, torch.zeros_like(t)), embeddings, counts)
    captions = [row[:length] for row, length in zip(embeddings, lengths, strict=True)]
    expected = theirs(list(latents.unsqueeze(2)), 1 - t, captions, return_dict=False)[0]
    assert far(result, torch.stack(expected).squeeze(2)) < 2e-6


def test_state_dict_loads_strictly_both_ways() -> None:
    theirs = ZImageTransformer2DModel(**WIDE)
    ours = SingleStreamTransformer(SingleStreamConfig.from_dict(WIDE | {"second_time_embedder": False}))
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    added = set(build(WIDE).state_dict()) - set(ours.state_dict())
    assert added == {f"t_embedder_2.mlp.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}


def second_embedder(state: dict[str, Tensor], name: str, time: float) -> Tensor:
    """Embed one scaled time with the formulas written out."""
    angles = [time * math.exp(-math.log(10_000) * i / 128) for i in range(128)]
    wave = torch.tensor([[*map(math.cos, angles), *map(math.sin, angles)]], dtype=torch.float64)
    hidden = wave @ state[f"{name}.mlp.0.weight"].double().T + state[f"{name}.mlp.0.bias"].double()
    hidden = hidden / (1 + (-hidden).exp())
    return (hidden @ state[f"{name}.mlp.2.weight"].double().T + state[f"{name}.mlp.2.bias"].double())[0]


@pytest.mark.parametrize(
    ("t", "target_t", "now", "target"),
    [
        (1.0, 0.0, 0.0, 0.0),
        (0.6, 0.0, 0.4, 0.0),
        (0.8, 0.3, 0.2, 0.7),
        (0.5, 0.5, 0.5, 0.5),
        (-0.3, -0.3, -0.7, -0.7),
        (-0.3, 0.4, -0.7, 0.6),
        (0.0, 0.0, 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("signed", [False, True])
@torch.no_grad()
def test_embeds_a_pair_of_times(
    t: float, target_t: float, now: float, target: float, *, signed: bool
) -> None:
    model = build(WIDE)
    state = model.state_dict()
    first = second_embedder(state, "t_embedder", (now if signed else abs(now)) * 1000)
    second = second_embedder(state, "t_embedder_2", (target - now) * 1000)
    expected = first + second * abs(target - now)
    result = model.embed_time(torch.tensor([t]), torch.tensor([target_t]), signed=signed)
    assert result.dtype == torch.float32
    assert far(result[0].double(), expected) < 2e-4  # sines of up to 1,700 radians in fp32


@torch.no_grad()
def test_sign_of_time_is_seen_only_when_asked_for() -> None:
    model, t = build(WIDE), torch.linspace(0.05, 0.95, 7)
    released, signed = model.embed_time(-t, -t), model.embed_time(-t, -t, signed=True)
    assert torch.equal(released, model.embed_time(t, t))
    assert (signed - model.embed_time(t, t, signed=True)).abs().amax(1).min() > 0.1


@torch.no_grad()
def test_positive_times_are_identical_with_and_without_sign() -> None:
    model, t, target = build(WIDE), torch.linspace(0, 1, 33), torch.linspace(0, 1, 33).square()
    assert torch.equal(model.embed_time(t, target), model.embed_time(t, target, signed=True))


@torch.no_grad()
def test_times_are_embedded_alike_in_bf16_and_under_autocast() -> None:
    model, t = build(WIDE), torch.tensor([0.7])
    expected = model.embed_time(t, t / 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.embed_time(t, t / 2), expected)
    assert far(model.bfloat16().embed_time(t, t / 2), expected) < 2e-2


@torch.no_grad()
def test_velocity_is_the_negative_of_the_prediction() -> None:
    model = build(WIDE)
    latents, embeddings, lengths = inputs(WIDE, (8, 8), 32, [4, 30])
    t, target = torch.tensor([0.9, -0.4]), torch.tensor([0.2, -0.4])
    time_embedding = model.embed_time(t, target, signed=True)
    expected = -model(latents, time_embedding, embeddings, lengths)
    assert torch.equal(model.velocity(latents, t, target, embeddings, lengths, signed=True), expected)


@torch.no_grad()
def test_padding_embeddings_have_no_effect() -> None:
    model = build(WIDE)
    latents, embeddings, lengths = inputs(WIDE, (8, 8), 32, [4, 30])
    t = torch.ones(2)
    first = model.velocity(latents, t, t * 0, embeddings, lengths)
    embeddings[0, 4:], embeddings[1, 30:] = 99.0, -99.0
    assert torch.equal(model.velocity(latents, t, t * 0, embeddings, lengths), first)


def test_trains_from_initial_weights() -> None:
    model = SingleStreamTransformer(SingleStreamConfig.from_dict(WIDE))
    model.init_weights()
    latents, embeddings, lengths = inputs(WIDE, (10, 14), 32, [4, 30])
    t = torch.tensor([0.9, 0.5])
    with torch.inference_mode():  # positions kept from here must not spoil the training step
        assert model.velocity(latents, t, t, embeddings, lengths).abs().max() == 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model.velocity(latents, t, t / 2, embeddings, lengths) - latents).square().mean().backward()
        optimizer.step()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_second_time_embedder_starts_as_a_copy() -> None:
    model = SingleStreamTransformer(SingleStreamConfig.from_dict(WIDE))
    model.init_weights()
    state = model.state_dict()
    assert torch.equal(state["t_embedder.mlp.0.weight"], state["t_embedder_2.mlp.0.weight"])


@torch.no_grad()
def test_traces_without_a_break() -> None:
    model = build(WIDE)
    latents, embeddings, lengths = inputs(WIDE, (10, 14), 32, [4, 30])
    arguments = (latents, torch.tensor([0.9, 0.5]), torch.zeros(2), embeddings, lengths)
    traced = torch.compile(model.velocity, fullgraph=True, backend="eager")
    assert far(traced(*arguments), model.velocity(*arguments)) < 1e-6
    for block in model.layers:
        block.compile(fullgraph=True, backend="eager")
    assert far(model.velocity(*arguments), traced(*arguments)) < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_kv_heads": 1}, "n_kv_heads 1 must equal n_heads 2"),
        ({"dim": 65}, "dim 65 must be a multiple"),
        ({"axes_dims": [8, 12, 14]}, r"axes_dims \(8, 12, 14\) must be even and add up to the head size 32"),
        ({"axes_lens": [8]}, "must have 3 values"),
        ({"all_patch_size": [2, 4], "all_f_patch_size": [1, 1]}, "one spatial patch size"),
        ({"siglip_feat_dim": 16}, "siglip_feat_dim 16 is not supported"),
        ({"colour": 1}, r"unknown keys \['colour'\]"),
    ],
)
def test_unsupported_configs_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SingleStreamConfig.from_dict(WIDE | change)


def test_reads_a_saved_config() -> None:
    saved = dict(ZImageTransformer2DModel(**WIDE).config) | {"_class_name": "ZImageTransformer2DModel"}
    config = SingleStreamConfig.from_dict(saved)
    assert (config.axes_dims, config.patch_size, config.max_caption_tokens) == ((8, 12, 12), 2, 480)


@pytest.mark.parametrize(("size", "tokens"), [((4, 4), 512), ((4, 4), 33), ((4, 130), 32)])
def test_positions_outside_of_the_tables_are_an_error(size: tuple[int, int], tokens: int) -> None:
    model = build(WIDE)
    latents, embeddings, lengths = inputs(WIDE, size, tokens, [4])
    with pytest.raises(ValueError, match="not supported"):
        model.velocity(latents, torch.ones(1), torch.zeros(1), embeddings, lengths)
