"""Each member of the family against its equation, written out with einsum in float64."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import AFFINE, PROMPTS, make_bridge, make_edit
from einops import einsum

import reftlens as rl
from reftlens.interventions import FAMILY, Affine, SourceIntervention

D, N = 16, 10
PART_TENSORS = (("rotations", "weight"), ("sources", "weight"), ("sources", "bias"))


def equation(edit, h):
    """h', from the raw parameters, in float64; the parameters stay differentiable."""
    h = h.double()
    p = {name: parameter.double() for name, parameter in edit.named_parameters()}

    def down(M):
        return einsum(M, h, "r d, n d -> n r")

    def up(M, inner):
        return h + einsum(M, inner, "r d, n r -> n d")

    match edit:
        case rl.LoReFT():
            R = p["rotation.weight"]
            return up(R, down(p["source.weight"]) + p["source.bias"] - down(R))
        case rl.AdditiveLoReFT():
            return up(p["rotation.weight"], down(p["source.weight"]) + p["source.bias"])
        case rl.ConsReFT():
            R = p["rotation.weight"]
            return up(R, p["target"] - down(R))
        case rl.LobiReFT():
            return h + einsum(p["rotation.weight"], p["target"], "r d, r -> d")
        case rl.DiReFT():
            return up(p["write"], down(p["read.weight"]) + p["read.bias"])
        case rl.NoReFT():
            return up(p["write"], down(p["read.weight"]) + p["read.bias"] - down(p["write"]))
        case rl.RED():
            return einsum(p["factor"], h, "d, n d -> n d") + p["push"]
        case rl.Rescale():
            return h + einsum(p["excess"], h, "d, n d -> n d")
        case rl.SteeringVector():
            return h + edit.scale * p["vector"]
        case rl.ReFTr1():
            v = p["direction.weight"][0]
            score = einsum(v, h, "d, n d -> n").clamp(min=0)
            return h + score.sort().values[-edit.k :].mean() * v
        case rl.SplitLoReFT():
            R, W, b = (torch.cat([p[f"{m}.part_{n}.{w}"] for n in edit.active]) for m, w in PART_TENSORS)
            return up(R, down(W) + b - down(R))
        case rl.Interchange() | rl.SplitInterchange():
            R = p["rotation.weight"]
            return up(R, einsum(R, edit.source.double(), "r d, d -> r") - down(R))
        case rl.BoundlessInterchange():
            R, sizes = p["rotation.weight"], list(edit.parts.values())
            x = torch.cat([b * k - torch.arange(k) - 0.5 for b, k in zip(p["boundary"], sizes, strict=True)])
            gap = einsum(R, edit.source.double(), "r d, d -> r") - down(R)
            return up(R, (x / edit.temperature.double()).sigmoid() * gap)
        case rl.MaskedInterchange():
            gap = einsum(edit.read.double(), edit.source.double(), "r d, d -> r") - down(edit.read.double())
            return up(edit.write.double(), (p["mask"] / edit.temperature.double()).sigmoid() * gap)
    raise AssertionError(f"no equation for {edit!r}: write it out above")


def tokens(dtype=torch.float64, seed=0, d=D):
    return torch.randn(N, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_kinds_are_unique() -> None:
    assert len({kind.kind for kind in FAMILY}) == len(FAMILY)


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_forward_is_the_equation(kind, dtype, tolerance, rank) -> None:
    edit, h = make_edit(kind, D, rank), tokens(dtype, rank)
    if dtype is torch.float64:
        edit = edit.double()
    out = edit(h)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), equation(edit, h), rtol=tolerance, atol=tolerance)
    assert not torch.allclose(out, h), "an edit that changes nothing would pass every comparison"


def test_the_equations_tell_the_members_apart() -> None:
    """On the same weights no two members of one shape agree, so none can pass by another's formula."""
    for kinds in ((rl.LoReFT, rl.AdditiveLoReFT), (rl.DiReFT, rl.NoReFT), (rl.ConsReFT, rl.LobiReFT)):
        one, two = (make_edit(kind, D, 4).double() for kind in kinds)
        two.load_state_dict(one.state_dict())
        assert float((one(tokens()) - two(tokens())).detach().norm()) > 0.1


@pytest.mark.parametrize("kind", AFFINE)
def test_affine_form_is_delta(kind) -> None:
    edit, h = make_edit(kind, D, 4).double(), tokens()
    affine = edit.affine()
    assert len(affine.write) == len(affine.read) <= 4, "factors, never a d x d matrix"
    torch.testing.assert_close(affine.delta(h), edit.delta(h), rtol=1e-10, atol=1e-12)
    gain, push = affine.along(torch.eye(D, dtype=torch.float64))
    torch.testing.assert_close(h @ gain.T + push, edit.delta(h), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", FAMILY)
def test_basis_spans_what_is_written_and_no_more(kind) -> None:
    edit = make_edit(kind, D, 4).double()
    basis, change = edit.basis(), edit.delta(torch.randn(200, D, dtype=torch.float64)).detach()
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis), dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(change @ basis.T @ basis, change, rtol=0, atol=1e-10)
    assert len(basis) == int(torch.linalg.matrix_rank(change))


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_the_scale_of_the_factors_does_not_change_the_basis(scale) -> None:
    """Two written rows and a constant outside their span: 3 directions, 2 where the constant is 0 or inside it."""
    draw = torch.Generator().manual_seed(0)
    frame = torch.linalg.qr(torch.randn(D, 4, generator=draw, dtype=torch.float64)).Q.T
    write, read = scale * torch.tensor([[1.0, 0.2], [0.5, 2.0]], dtype=torch.float64) @ frame[:2], frame[2:] / scale
    for constant, rank in ((frame[3], 3), (0 * frame[3], 2), (frame[:2].sum(0), 2)):
        affine = Affine(write.float(), read.float(), constant.float())
        basis, h = affine.basis(), torch.randn(50, D, generator=draw)
        assert len(basis) == rank
        change = affine.delta(h).double()
        torch.testing.assert_close(change @ basis.T @ basis, change, rtol=0, atol=1e-5)
    assert len(Affine(write.float(), read.float(), 0 * frame[0].float(), None).basis()) == 2
    assert len(Affine(write[:0].float(), read[:0].float(), scale * frame[0].float()).basis()) == 1


def test_basis_of_no_change_is_empty() -> None:
    for edit in (rl.RED(D), rl.SteeringVector(D)):
        assert edit.basis().shape == (0, D)


@pytest.mark.parametrize("kind", FAMILY)
def test_gradients_are_those_of_the_equation(kind) -> None:
    edit = make_edit(kind, 8, 3).double()
    assert torch.autograd.gradcheck(edit, tokens(d=8).requires_grad_())
    weight = tokens(seed=1, d=8)
    names, parameters = zip(*edit.named_parameters(), strict=True)
    ours = torch.autograd.grad((edit(tokens(d=8)) * weight).sum(), parameters)
    theirs = torch.autograd.grad((equation(edit, tokens(d=8)) * weight).sum(), parameters)
    before = torch.zeros(0, 8, dtype=torch.float64)
    for name, parameter, mine, reference in zip(names, parameters, ours, theirs, strict=True):
        if name.startswith(("rotation", "direction")):
            R = parameter.detach()
            sym = (reference @ R.T + R @ reference.T) / 2
            # Tangent, and away from the parts before it.
            reference = reference - sym @ R - reference @ before.T @ before
            before = R
        assert float(reference.norm()) > 0
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        (rl.LoReFT, 2 * 4 * D + 4),
        (rl.AdditiveLoReFT, 2 * 4 * D + 4),
        (rl.DiReFT, 2 * 4 * D + 4),
        (rl.NoReFT, 2 * 4 * D + 4),
        (rl.ConsReFT, 4 * D + 4),
        (rl.LobiReFT, 4 * D + 4),
        (rl.RED, 2 * D),
        (rl.Rescale, D),
        (rl.SteeringVector, D),
        (rl.ReFTr1, D),
        (rl.SplitLoReFT, 2 * 4 * D + 4),
        (rl.Interchange, 4 * D),
        (rl.SplitInterchange, 4 * D),
        (rl.BoundlessInterchange, 4 * D + 2),
        (rl.MaskedInterchange, 4),
    ],
)
def test_parameter_count(kind, count) -> None:
    assert make_edit(kind, D, 4).n_parameters() == count


@pytest.mark.parametrize("kind", FAMILY)
def test_settings_make_the_same_edit(kind) -> None:
    edit = make_edit(kind, D, 4)
    again = kind(**json.loads(json.dumps(edit.settings())))
    assert again.settings() == edit.settings()
    again.load_state_dict(edit.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), edit.parameters(), strict=True))
    assert f"d_model={D}" in repr(edit)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", FAMILY)
def test_reload_through_a_reft_equals_to_the_bit(tmp_path, gpt2, make_reft, kind) -> None:
    reft, batch = make_reft(kind=kind), rl.encode(gpt2, PROMPTS)
    reft.save_pretrained(tmp_path / "edit", bridge=gpt2)
    again = rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2)
    (((_, edit),), ((_, old),)) = again, reft
    assert type(edit) is kind
    if isinstance(edit, SourceIntervention):
        edit.take(old.source)
    logits = [gpt2.run_with_hooks(batch.tokens, fwd_hooks=r.fwd_hooks(batch.prompt_mask)) for r in (reft, again)]
    assert torch.equal(*logits)
    assert not torch.allclose(logits[0], gpt2(batch.tokens)), "an edit without effect would equal anything"


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("scale", [0.5, -2.0, 0.0])
def test_an_edit_adds_scale_times_delta_at_its_tokens_alone(kind, scale) -> None:
    edit, resid = make_edit(kind, D, 4), torch.randn(2, 5, D)
    mask = torch.tensor([[True, False, True, False, False], [False, True, True, True, False]])
    out = rl.Edit("hook", edit, mask, scale=scale).apply(resid)
    expected = resid.clone()
    for row in range(2):
        expected[row, mask[row]] += scale * edit.delta(resid[row, mask[row]])
    torch.testing.assert_close(out, expected)
    assert torch.equal(out[~mask], resid[~mask])


@pytest.mark.parametrize("kind", FAMILY)
def test_rounding_below_float32_does_not_reach_an_edit(kind) -> None:
    """`.to(bfloat16)` and `.half()` leave an edit's numbers as they are; `.double()` is free to widen them."""
    edit = make_edit(kind, D, 4)
    before = {name: tensor.clone() for name, tensor in edit.state_dict().items()}
    site = rl.Site("blocks.1.hook_resid_post", "l1")
    reft = rl.Reft([(site, edit)]).to(torch.bfloat16)
    reft.half()
    for name, tensor in edit.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.dtype == torch.float32
    assert {p.dtype for p in reft.double().parameters()} == {torch.float64}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", FAMILY)
def test_inside_a_bfloat16_model_the_edit_is_computed_in_float32(make_reft, kind) -> None:
    bridge, reft = make_bridge("gpt2", dtype=torch.bfloat16), make_reft(kind=kind).to(torch.bfloat16)
    batch, name = rl.encode(bridge, PROMPTS), "blocks.1.hook_resid_post"
    _, base = bridge.run_with_cache(batch.tokens)
    with reft.hooks(bridge, batch.prompt_mask):
        _, cache = bridge.run_with_cache(batch.tokens)
    ((_, edit),) = reft
    mask = reft.edits(batch.prompt_mask)[0].mask
    before, after = base[name], cache[name]
    assert after.dtype == torch.bfloat16
    for row in range(len(batch)):
        h = before[row, mask[row]]
        exact = h.double() + edit.delta(h.float()).double()
        # One rounding of the change and one of the sum, each half a unit of bfloat16's 8 bits.
        bound = 2**-8 * (exact.abs() + (exact - h.double()).abs())
        assert bool(((after[row, mask[row]].double() - exact).abs() <= bound).all())
    assert not torch.equal(before[mask], after[mask])


@pytest.mark.parametrize("kind", [rl.RED, rl.SteeringVector])
def test_these_start_as_the_identity(kind) -> None:
    assert torch.equal(kind(D)(tokens(torch.float32)), tokens(torch.float32))


@pytest.mark.parametrize("kind", [kind for kind in FAMILY if "rank" in kind.arguments])
@pytest.mark.parametrize("weights", range(3))
def test_these_do_not_start_as_the_identity(kind, weights) -> None:
    edit, h = make_edit(kind, D, 4, seed=weights), tokens(torch.float32)
    assert float((edit(h) - h).detach().norm()) > 1e-2


def test_a_given_steering_vector_is_copied_and_scaled() -> None:
    vector = torch.randn(D)
    edit = rl.SteeringVector.of(vector, scale=-3.0)
    torch.testing.assert_close(edit(torch.zeros(2, D)), (-3.0 * vector).expand(2, D))
    with torch.no_grad():
        edit.vector.zero_()
    assert float(vector.norm()) > 0
    for bad, message in ((torch.full((D,), torch.nan), "NaN"), (torch.zeros(D), "scale must not be 0")):
        with pytest.raises(ValueError, match=message):
            rl.SteeringVector.of(bad, scale=0.0)


def test_consreft_and_lobireft_start_as_the_reference_does() -> None:
    for kind in (rl.ConsReFT, rl.LobiReFT):
        target = kind(600, 500).target.detach()
        assert 0 <= float(target.min()) < 0.05 < 0.95 < float(target.max()) < 1


@pytest.mark.parametrize("kind", [kind for kind in FAMILY if "parts" not in kind.arguments])
def test_impossible_sizes_are_refused(kind) -> None:
    sized = "rank" in kind.arguments
    cases = [((0, 1) if sized else (0,), ValueError, "d_model must be at least 1, got 0")]
    if sized:
        cases += [((16, 17), ValueError, r"rank must be in \[1, 16\].*got 17"), ((16, 0), ValueError, "got 0")]
    for sizes, error, message in cases:
        with pytest.raises(error, match=message):
            kind(*sizes)


def test_an_affine_form_without_a_diagonal_is_written_with_three_factors() -> None:
    zero = torch.zeros(1, D)
    assert Affine(zero, zero, zero[0]).diagonal is None
