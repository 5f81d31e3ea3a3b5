"""The folded form against the open one: the same numbers with fewer weights; and fp8 within its rounding."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from twinshot_engine.precision import FP8, Projection, QuantizedRows, quantize_projections
from twinshot_engine.schedule import single_time
from twinshot_engine.transformer import FoldedTransformer, SingleStreamConfig, SingleStreamTransformer
from twinshot_engine.transformer.folding import fold_times, folded_slots, is_time, time_slots

SMALL: dict[str, Any] = {
    "in_channels": 8,
    "dim": 96,
    "n_layers": 3,
    "n_refiner_layers": 2,
    "n_heads": 3,
    "n_kv_heads": 3,
    "cap_feat_dim": 24,
    "axes_dims": [8, 12, 12],
    "axes_lens": [512, 64, 64],
}
PADDED = {"dim": 64, "n_heads": 2, "n_kv_heads": 2}
"""Makes a feed-forward layer 170 wide, which is no multiple of 16."""

TIMES = [(1.0, 0.0), (0.6, 0.0), (0.75, 0.5)]


def open_form(**change: Any) -> SingleStreamTransformer:
    torch.manual_seed(0)
    model = SingleStreamTransformer(SingleStreamConfig.from_dict(SMALL | change)).eval()
    for parameter in model.parameters():
        # More, and modulation grows so large that it magnifies every rounding error.
        parameter.data.add_(torch.randn_like(parameter), alpha=0.03)
    return model


def fold(unfolded: SingleStreamTransformer) -> FoldedTransformer:
    """Copy weights by the slots, as a loader does."""
    folded = FoldedTransformer(unfolded.config)
    parameters, state = dict(folded.named_parameters()), unfolded.state_dict()
    for name, parameter in parameters.items():
        parameter.data.zero_() if ".w" in name else parameter.data.fill_(torch.nan)
    for name, slot in folded_slots(folded).items():
        slot.place(parameters[slot.parameter].data).copy_(state[name])
    return folded.eval()


def inputs(tokens: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 8, 10, 14), torch.randn(2, tokens, 24), torch.tensor([9, 40])


def far(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("row", range(len(TIMES)))
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"qk_norm": False},
        {"n_refiner_layers": 0},
        {"second_time_embedder": False},
        PADDED,
    ],
)
@torch.no_grad()
def test_folded_equals_unfolded(row: int, change: dict[str, Any]) -> None:
    unfolded = open_form(**change)
    folded = fold(unfolded)
    latents, embeddings, lengths = inputs()
    # A network with one embedder knows one time, which is t wherever the data is aimed at.
    times = TIMES[row] if unfolded.t_embedder_2 else (single_time(*TIMES[row]), 0.0)
    t, target_t = (torch.tensor([time]) for time in times)
    expected = unfolded(latents, unfolded.embed_time(t, target_t), embeddings, lengths)
    caption = folded.refine_caption(embeddings, lengths)
    result = folded.predict(latents, caption, folded.modulation(fold_times(unfolded, TIMES)[row]))
    assert far(result, expected) < 1e-5


def test_no_time_weights_remain() -> None:
    folded, unfolded = FoldedTransformer(SingleStreamConfig.from_dict(SMALL)), open_form()
    assert not [name for name, _ in folded.named_parameters() if is_time(name)]
    stored = set(unfolded.state_dict())
    assert set(folded_slots(folded)) | set(time_slots(unfolded)) == stored
    assert not set(folded_slots(folded)) & set(time_slots(unfolded))


def test_every_element_of_a_weight_has_at_most_one_source() -> None:
    folded = FoldedTransformer(SingleStreamConfig.from_dict(SMALL | PADDED))
    counts = {name: torch.zeros_like(parameter) for name, parameter in folded.named_parameters()}
    for slot in folded_slots(folded).values():
        slot.place(counts[slot.parameter]).add_(1)
    assert all(int(count.max()) == 1 for count in counts.values())
    padded = {name.rpartition("feed_forward.")[2] for name, count in counts.items() if int(count.min()) == 0}
    assert padded == {"w13.weight", "w2.weight"}


@torch.no_grad()
def test_one_row_serves_a_whole_batch_as_rows_of_their_own_do() -> None:
    unfolded = open_form()
    latents, embeddings, lengths = inputs()
    caption = unfolded.refine_caption(embeddings, lengths)
    each = unfolded.modulate(unfolded.embed_time(torch.tensor([1.0, 1.0]), torch.zeros(2)))
    one = unfolded.modulate(unfolded.embed_time(torch.ones(1), torch.zeros(1)))
    assert far(unfolded.predict(latents, caption, one), unfolded.predict(latents, caption, each)) < 1e-5


def to_fp8(folded: FoldedTransformer) -> FoldedTransformer:
    """Quantise projections in place of a loader: per output channel, by the formula."""
    quantized = copy.deepcopy(folded).to(torch.bfloat16)
    weights = {n: m.weight.data.float() for n, m in quantized.named_modules() if isinstance(m, Projection)}
    quantize_projections(quantized, lambda name: not name.startswith("context_refiner"))
    for name, part in quantized.named_modules():
        if isinstance(part, Projection) and part.weight_scale is not None:
            scale = weights[name].abs().amax(1, keepdim=True) / 448
            part.weight.data.copy_((weights[name] / scale).to(FP8))
            part.weight_scale.copy_(scale.squeeze(1))
    return quantized


@torch.no_grad()
def test_fp8_differs_by_its_rounding_alone() -> None:
    unfolded = open_form()
    folded, table = fold(unfolded), fold_times(unfolded, TIMES)
    half, quantized = copy.deepcopy(folded).to(torch.bfloat16), to_fp8(folded)
    latents, embeddings, lengths = inputs()

    def run(model: FoldedTransformer) -> Tensor:
        dtype = model.cap_pad_token.dtype
        caption = model.refine_caption(embeddings.to(dtype), lengths)
        return model.predict(latents.to(dtype), caption, model.modulation(table[0])).float()

    exact = run(folded)
    assert quantized.layers[0].get_parameter("attention.to_qkv.weight").dtype == FP8
    assert quantized.context_refiner[0].get_parameter("attention.to_qkv.weight").dtype == torch.bfloat16
    assert far(run(half), exact) < 0.02
    assert 0.02 < far(run(quantized), exact) < 0.12


@torch.no_grad()
def test_a_quantised_projection_takes_rows_or_makes_them() -> None:
    torch.manual_seed(2)
    projection = Projection(32, 48)
    weight, x = torch.randn(48, 32), torch.randn(5, 32)
    projection.quantize()
    scale = weight.abs().amax(1) / 448
    projection.weight.data.copy_((weight / scale[:, None]).to(FP8))
    assert projection.weight_scale is not None
    projection.weight_scale.copy_(scale)
    row_scale = x.abs().amax(1, keepdim=True) / 448
    rows = QuantizedRows((x / row_scale).to(FP8), row_scale)
    exact = (rows.values.float() * row_scale) @ (projection.weight.float() * scale[:, None]).T
    assert far(projection(rows).float(), exact) < 5e-3
    assert torch.equal(projection(x), projection(rows))


def test_sides_that_tensor_cores_cannot_read_are_named() -> None:
    with pytest.raises(ValueError, match=r"a projection of \[48, 20\] cannot be fp8: .* multiples of 16"):
        Projection(20, 48).quantize()


def test_rows_do_not_reach_a_plain_projection() -> None:
    rows = QuantizedRows(torch.zeros(2, 16).to(FP8), torch.ones(2, 1))
    with pytest.raises(TypeError, match="quantised rows reached a projection"):
        Projection(16, 16)(rows)


def test_without_a_second_embedder_both_times_become_one() -> None:
    """As TwinFlow trains LoRAs: t - target / 2, but t where the pass aims at its own time."""
    unfolded = open_form(second_time_embedder=False)
    folded = fold_times(unfolded, [(0.8, 0.6), (0.8, 0.8), (0.8, 0.0)])
    expected = [
        unfolded.modulate(unfolded.embed_time(torch.tensor([t]), torch.zeros(1))).pack()
        for t in (0.5, 0.8, 0.8)
    ]
    torch.testing.assert_close(folded, torch.stack(expected))
