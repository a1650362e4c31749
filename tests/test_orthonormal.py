"""R under optimisers: orthonormal to rounding, of full rank, left alone where it is already right."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from reftlens.interventions import LoReFT, Orthonormal


def fit(edit, *, steps, seed=0, **options):
    """Trains an edit towards random targets with AdamW."""
    generator = torch.Generator().manual_seed(seed)
    d_model = edit.d_model
    h, target = (torch.randn(16, d_model, generator=generator) for _ in range(2))
    optimiser = torch.optim.AdamW(edit.parameters(), **options)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.mse_loss(edit(h), target).backward()
        optimiser.step()


def distance_from_orthonormal(R) -> float:
    R = R.detach().double()
    return float((R @ R.T - torch.eye(len(R), dtype=torch.float64)).abs().max())


@pytest.mark.sampled(1)
@pytest.mark.parametrize("fused", [False, True])
def test_R_is_exact_and_of_full_rank_after_2000_steps_with_weight_decay(fused) -> None:
    torch.manual_seed(0)
    edit = LoReFT(64, 4)
    start = edit.R.detach().clone()
    fit(edit, steps=2000, lr=9e-4, weight_decay=0.1, fused=fused)
    raw = edit.rotation.weight.detach().clone()
    assert distance_from_orthonormal(raw) > 1e-6, "the last step left R where it was: nothing was put to the test"
    assert distance_from_orthonormal(edit.R) <= 1e-6
    singular = torch.linalg.svdvals(edit.R.detach().double())
    torch.testing.assert_close(singular, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6)
    assert float((edit.R - start).detach().norm()) > 0.5, "R did not move"


def test_the_householder_form_loses_R_to_weight_decay() -> None:
    """The trap that this module is for: if torch mends it, say so in the docstring."""
    torch.manual_seed(0)
    layer = orthogonal(nn.Linear(4, 64, bias=False), orthogonal_map="householder")
    assert distance_from_orthonormal(layer.weight.T) < 1e-5
    optimiser = torch.optim.AdamW(layer.parameters(), lr=9e-4, weight_decay=0.1)
    layer(torch.randn(16, 4)).square().sum().backward()
    optimiser.step()
    assert float(layer.weight.detach().abs().max()) == 0.0


@pytest.mark.parametrize(("d_model", "rank"), [(64, 4), (768, 16), (4096, 8), (64, 64)])
def test_one_retraction_is_exact_at_any_size(monkeypatch, d_model, rank) -> None:
    R = Orthonormal(rank, d_model)
    with torch.no_grad():
        R.weight.add_(1e-3 * torch.randn(rank, d_model))
    assert distance_from_orthonormal(R()) <= 1e-6
    monkeypatch.setattr(torch.linalg, "qr", lambda _: pytest.fail("retracted what was already on the manifold"))
    R()


def test_retraction_continues_R() -> None:
    """A small step off the manifold comes back near to where it was, with no row turned round."""
    R = Orthonormal(8, 32)
    before = R().detach().clone()
    with torch.no_grad():
        R.weight.mul_(0.9).add_(1e-4 * torch.randn(8, 32))
    assert float((R() - before).detach().abs().max()) < 1e-3


def test_gradient_of_R_is_tangent() -> None:
    edit = LoReFT(16, 4).double()
    edit(torch.randn(20, 16, dtype=torch.float64)).square().sum().backward()
    G, R = edit.rotation.weight.grad, edit.R
    assert float(G.norm()) > 0
    torch.testing.assert_close(G @ R.T + R @ G.T, torch.zeros(4, 4, dtype=torch.float64), rtol=0, atol=1e-9)


def test_a_matrix_on_the_manifold_is_left_to_the_bit() -> None:
    edit = LoReFT(64, 8)
    R = edit.R.detach().clone()
    other = LoReFT(64, 8)
    other.load_state_dict(edit.state_dict())
    assert torch.equal(other.R, R)
    assert torch.equal(copy.deepcopy(edit).R, R)


def test_what_is_saved_is_orthonormal_also_right_after_a_step() -> None:
    edit = LoReFT(64, 4)
    fit(edit, steps=3, lr=1e-2)
    assert distance_from_orthonormal(edit.rotation.weight) > 1e-4
    assert distance_from_orthonormal(edit.state_dict()["rotation.weight"]) <= 1e-6


@pytest.mark.parametrize("fused", [False, True])
def test_R_is_retracted_once_per_step_not_once_per_use(monkeypatch, fused) -> None:
    edit, calls, qr = LoReFT(16, 2), [], torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda matrix: calls.append(1) or qr(matrix))
    optimiser = torch.optim.AdamW(edit.parameters(), lr=0.1, fused=fused)
    for step in range(1, 4):
        for _ in range(3):
            edit(torch.randn(4, 16)).square().sum().backward()
        optimiser.step()
        for _ in range(3):
            edit(torch.randn(4, 16))
        assert len(calls) == step


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_diverged_R_is_an_error(value) -> None:
    edit = LoReFT(16, 2)
    with torch.no_grad():
        edit.rotation.weight.fill_(float(value))
    with pytest.raises(ValueError, match="diverged"):
        edit(torch.randn(4, 16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_R_stays_exact_when_it_is_told_to_round(dtype) -> None:
    R = Orthonormal(4, 32)
    before = R().detach().clone()
    assert torch.equal(R.to(dtype)(), before)
    assert distance_from_orthonormal(before.to(dtype)) > 1e-4, "rounding itself would have shown"


def test_R_yields_to_fixed_rows() -> None:
    fixed, R = Orthonormal(3, 16).double()().detach(), Orthonormal(4, 16).double()
    rows = torch.cat([fixed, R(fixed)])
    assert distance_from_orthonormal(rows) < 1e-12
    rows[3:].mul(torch.randn(4, 16, dtype=torch.float64)).sum().backward()
    G = R.weight.grad
    assert float(G.norm()) > 0
    torch.testing.assert_close(G @ fixed.T, torch.zeros(4, 3, dtype=torch.float64), rtol=0, atol=1e-12)
