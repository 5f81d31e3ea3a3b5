"""Adapters: where they go, who computes with which, and the names they are saved under."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from twinshot_distill.averages import RunningAverage
from twinshot_distill.lora import (
    LoraLinear,
    LoraSettings,
    adapter_pairs,
    adapter_state,
    add_adapters,
    lora_layers,
    using,
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(6, 6)
        self.not_to_q = nn.Linear(6, 6)
        self.to_out = nn.ModuleList([nn.Linear(6, 6, bias=False)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.to_out[0](torch.tanh(self.not_to_q(self.to_q(x))))
        return out


def adapted(rank: int = 2, alpha: float = 6.0) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model, plain = nn.Sequential(Block(), Block()), nn.Sequential(Block(), Block())
    plain.load_state_dict(model.state_dict())
    assert add_adapters(model, LoraSettings(rank, alpha), ["to_q", "to_out.0"]) == 4
    return model, plain


def shaken(model: nn.Module) -> nn.Module:
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.weight_of("default_up"))
    return model


def test_only_named_layers_are_adapted_and_only_the_student_learns() -> None:
    model, _ = adapted()
    assert set(lora_layers(model)) == {"0.to_q", "0.to_out.0", "1.to_q", "1.to_out.0"}
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("default_" in name for name in learning)
    assert len(learning) == 8


def test_fresh_adapters_change_nothing_and_disabled_ones_never_do() -> None:
    model, plain = adapted()
    x = torch.randn(3, 6)
    torch.testing.assert_close(model(x), plain(x))
    shaken(model)
    assert not torch.allclose(model(x), plain(x))
    with using(list(lora_layers(model).values()), "disabled"):
        torch.testing.assert_close(model(x), plain(x))
    assert not torch.allclose(model(x), plain(x))


def test_an_adapter_is_its_formula_and_merges_into_one_weight() -> None:
    model, _ = adapted(rank=2, alpha=6.0)
    layer = lora_layers(shaken(model))["0.to_q"]
    x = torch.randn(3, 6)
    low, high = layer.weight_of("default_down"), layer.weight_of("default_up")
    torch.testing.assert_close(layer(x), layer.base(x) + 3.0 * x @ low.T @ high.T)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.merged(), layer.base.bias))


def test_a_frozen_layer_in_bf16_computes_in_its_inputs_precision_where_that_is_asked_for() -> None:
    """Z-Image's time embedder turns autocast off, and reads times whose differences bf16 cannot hold."""
    torch.manual_seed(0)
    base = nn.Linear(6, 5).bfloat16()
    layer, x = LoraLinear(base, LoraSettings(2, 2.0)), torch.randn(3, 6)
    expected = nn.functional.linear(x, base.weight.float(), base.bias.float())
    assert torch.equal(layer(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_the_old_adapter_follows_the_student() -> None:
    model, plain = adapted()
    layers = lora_layers(shaken(model))
    average = RunningAverage(adapter_pairs(layers), 0.99)
    x = torch.randn(3, 6)
    student = model(x)
    with using(list(layers.values()), "old"):
        torch.testing.assert_close(model(x), plain(x))
        average.update()
        torch.testing.assert_close(model(x), student)


def test_adapters_are_saved_under_common_names_with_their_scale() -> None:
    model, _ = adapted(rank=2, alpha=6.0)
    layers = lora_layers(shaken(model))
    state = adapter_state(layers)
    assert len(state) == 8
    layer = layers["1.to_out.0"]
    a, b = (state[f"transformer.1.to_out.0.lora_{letter}.weight"] for letter in "AB")
    assert (a.shape, b.shape) == ((2, 6), (6, 2))
    torch.testing.assert_close(layer.base.weight + b @ a, layer.merged())


def test_targets_that_name_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="ends with \\['to_z'\\]"):
        add_adapters(nn.Sequential(Block()), LoraSettings(), ["to_q", "to_z"])
