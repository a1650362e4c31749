"""Each member of the family against its equation, written out with einsum in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from einops import einsum
from torch import nn

from reftlens.interventions import FAMILY, DiReFT, LoReFT


def equation(edit, h):
    """The paper's formula, from the parameters, in float64."""
    h = h.double()
    if isinstance(edit, LoReFT):
        R, W, b = edit.R.double(), edit.source.weight.double(), edit.source.bias.double()
        inner = einsum(W, h, "r d, n d -> n r") + b - einsum(R, h, "r d, n d -> n r")
        return h + einsum(R, inner, "r d, n r -> n d")
    W1, b, W2 = edit.read.weight.double(), edit.read.bias.double(), edit.write.double()
    return h + einsum(W2, einsum(W1, h, "r d, n d -> n r") + b, "r d, n r -> n d")


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_forward_is_the_equation(kind, dtype, tolerance, rank) -> None:
    edit, h = kind(16, rank), torch.randn(10, 16, generator=torch.Generator().manual_seed(rank)).to(dtype)
    if dtype is torch.float64:
        edit = edit.double()
    out = edit(h)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), equation(edit, h), rtol=tolerance, atol=tolerance)
    assert not torch.allclose(out, h), "an edit that changes nothing would pass every comparison"


@pytest.mark.parametrize("kind", FAMILY)
def test_affine_form_is_delta(kind) -> None:
    edit, h = kind(16, 4).double(), torch.randn(10, 16, dtype=torch.float64)
    write, read, constant = edit.affine()
    torch.testing.assert_close(h @ read.T @ write + constant, edit.delta(h))


@pytest.mark.parametrize("kind", FAMILY)
def test_gradients_are_those_of_the_equation(kind) -> None:
    edit = kind(8, 3).double()
    assert torch.autograd.gradcheck(edit, torch.randn(5, 8, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("kind", FAMILY)
def test_parameter_count_is_the_papers(kind) -> None:
    assert sum(p.numel() for p in kind(16, 4).parameters()) == 2 * 4 * 16 + 4


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_R_stays_orthonormal_and_keeps_its_rank_under_adamw(weight_decay) -> None:
    torch.manual_seed(0)
    edit = LoReFT(32, 4)
    target = torch.randn(64, 32)
    h = torch.randn(64, 32)
    start = edit.R.detach().clone()
    optimiser = torch.optim.AdamW(edit.parameters(), lr=5e-3, weight_decay=weight_decay)
    for _ in range(300):
        optimiser.zero_grad()
        nn.functional.mse_loss(edit(h), target).backward()
        optimiser.step()
    R = edit.R.detach()
    torch.testing.assert_close(R @ R.T, torch.eye(4), rtol=0, atol=1e-6)
    assert float((R - start).norm()) > 0.5, "R did not move"


def test_gradient_of_R_is_tangent() -> None:
    edit = LoReFT(16, 4).double()
    edit(torch.randn(20, 16, dtype=torch.float64)).square().sum().backward()
    G, R = edit.rotation.weight.grad, edit.R
    torch.testing.assert_close(G @ R.T + R @ G.T, torch.zeros(4, 4, dtype=torch.float64), rtol=0, atol=1e-9)


def test_a_matrix_on_the_manifold_is_left_to_the_bit() -> None:
    edit = LoReFT(64, 8)
    R = edit.R.detach().clone()
    other = LoReFT(64, 8)
    other.load_state_dict(edit.state_dict())
    assert torch.equal(other.R, R)
    assert torch.equal(copy.deepcopy(edit).R, R)


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


def test_diverged_R_is_an_error() -> None:
    edit = LoReFT(16, 2)
    with torch.no_grad():
        edit.rotation.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="diverged"):
        edit(torch.randn(4, 16))


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize(
    ("d_model", "rank", "error", "message"),
    [
        (16, 17, ValueError, r"rank must be in \[1, 16\].*got 17"),
        (16, 0, ValueError, "got 0"),
        (0, 1, ValueError, "d_model"),
    ],
)
def test_impossible_sizes_are_refused(kind, d_model, rank, error, message) -> None:
    with pytest.raises(error, match=message):
        kind(d_model, rank)


def test_kinds_are_unique() -> None:
    assert len({member.kind for member in FAMILY}) == len(FAMILY)
    assert {LoReFT, DiReFT} <= set(FAMILY)
