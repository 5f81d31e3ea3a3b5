"""Muon on stacks of matrices, against its definition and torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from twinshot_distill.muon import StackedMuon, orthogonalised

SHAPES = [(12, 20), (12, 20), (20, 12), (16, 16), (12, 20)]


def matrices(seed: int) -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=rng)) for shape in SHAPES]


@pytest.mark.parametrize("shape", [(3, 12, 20), (2, 20, 12), (1, 16, 16)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int, int]) -> None:
    given = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, v = torch.linalg.svd(given, full_matrices=False)
    assert float(s.max() / s.min()) > 3
    turned = u.mT @ orthogonalised(given).float() @ v.mT
    values = turned.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.5
    assert values.max() < 1.4
    assert (turned - torch.diag_embed(values)).abs().max() < 0.1


def test_steps_are_those_of_torch() -> None:
    ours, theirs = matrices(0), matrices(0)
    stacked = StackedMuon(ours, 0.02, weight_decay=0.1)
    single = torch.optim.Muon(theirs, 0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rng = torch.Generator().manual_seed(3)
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=rng)
            b.grad = a.grad.clone()
        stacked.step()
        single.step()  # type: ignore[no-untyped-call]
    for a, b, start in zip(ours, theirs, matrices(0), strict=True):
        moved = (b - start).norm()
        assert moved > 0.1
        assert (a - b).norm() < 0.02 * moved
        kept = stacked.state[a]["momentum_buffer"]
        torch.testing.assert_close(kept, single.state[b]["momentum_buffer"])


def test_a_rate_on_the_device_moves_as_far_as_a_number() -> None:
    by_number, by_tensor = matrices(0), matrices(0)
    rate = torch.tensor(1.0)
    first, second = StackedMuon(by_number, 0.03), StackedMuon(by_tensor, rate)
    rate.fill_(0.03)
    for a, b in zip(by_number, by_tensor, strict=True):
        a.grad = torch.ones_like(a)
        b.grad = torch.ones_like(b)
    first.step()
    second.step()
    for a, b in zip(by_number, by_tensor, strict=True):
        torch.testing.assert_close(a, b)


def test_matrices_without_a_gradient_stay() -> None:
    some = matrices(0)
    some[0].grad = torch.ones_like(some[0])
    StackedMuon(some, 0.1).step()
    assert not torch.equal(some[0], matrices(0)[0])
    assert all(torch.equal(a, b) for a, b in zip(some[1:], matrices(0)[1:], strict=True))
