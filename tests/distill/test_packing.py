"""Judges' weights in eight bits, against the definition."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save

from twinshot_distill.packing import pack, unpack


def test_weights_come_back_within_half_a_level_of_their_channel() -> None:
    rng = torch.Generator().manual_seed(2)
    state = {
        "body.weight": torch.randn(6, 3, 3, 3, generator=rng) * torch.logspace(-4, 2, 6)[:, None, None, None],
        "head.weight": torch.randn(5, 7, generator=rng),
        "head.bias": torch.randn(5, generator=rng),
    }
    blob = pack(state)
    back = unpack(blob)
    assert back.keys() == state.keys()
    assert torch.equal(back["head.bias"], state["head.bias"])
    for name in ("body.weight", "head.weight"):
        largest = state[name].flatten(1).abs().amax(1)
        error = (back[name] - state[name]).flatten(1).abs().amax(1)
        assert (error <= largest / 127 / 2 * 1.001).all(), name
    assert len(blob) < 600 + 6 * 27 + 5 * 7 + 4 * (6 + 5 + 5)


def test_a_channel_of_zeros_stays_zero() -> None:
    assert not unpack(pack({"weight": torch.zeros(2, 4)}))["weight"].any()


def test_files_in_half_precision_are_read_too() -> None:
    weight = torch.randn(3, 4).half()
    assert torch.equal(unpack(save({"weight": weight}))["weight"], weight.float())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value: float) -> None:
    with pytest.raises(ValueError, match=r"'head\.weight' is not finite"):
        pack({"head.weight": torch.tensor([[1.0, value]])})
