"""The interchange against TransformerLens's own run of it, and as the parent of LoReFT."""

from __future__ import annotations

import pytest
import torch
from conftest import PROMPTS, make_edit
from transformer_lens.tools.analysis.interchange import SubspaceInterchange, random_basis, run_with_intervention

import reftlens as rl

D, NAME = 32, "blocks.1.hook_resid_post"
BASE, OTHER = ["The tower stands in the city of"], ["The weaver stands in the city of"]


def test_it_is_transformer_lens_interchange_on_a_model(bridge) -> None:
    basis = random_basis(D, 4, seed=0)
    edit = rl.Interchange.along(basis.T)
    reft = rl.Reft([(rl.Site(NAME, rl.Last(1)), edit)])
    base, other = rl.encode(bridge, BASE), rl.encode(bridge, OTHER)
    _, cache = bridge.run_with_cache(other.tokens)
    last = base.last_prompt_index
    source = cache[NAME][torch.arange(1), other.last_prompt_index]
    theirs = run_with_intervention(
        bridge, NAME, SubspaceInterchange(basis), base.tokens, source, lambda t: bridge(t), positions=last
    )
    edit.take(source)
    ours = bridge.run_with_hooks(base.tokens, fwd_hooks=reft.fwd_hooks(base.prompt_mask))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, bridge(base.tokens), rtol=1e-3), "the interchange changes the logits"


def test_the_whole_space_gives_the_source_and_its_own_source_gives_nothing() -> None:
    edit, h, s = rl.Interchange(8, 8).double(), *torch.randn(2, 5, 8, dtype=torch.float64)
    edit.take(s)
    torch.testing.assert_close(edit(h), s)
    edit.take(h)
    torch.testing.assert_close(edit(h), h)


def test_inside_the_subspace_it_is_the_source_and_outside_the_base() -> None:
    edit, h, s = make_edit(rl.Interchange, 16, 4).double(), *torch.randn(2, 5, 16, dtype=torch.float64)
    edit.take(s)
    R, out = edit.R, edit(h)
    torch.testing.assert_close(out @ R.T, s @ R.T)
    torch.testing.assert_close(out - out @ R.T @ R, h - h @ R.T @ R)


def test_loreft_is_an_interchange_with_a_learned_source() -> None:
    loreft = make_edit(rl.LoReFT, 16, 4).double()
    edit, h = rl.Interchange.along(loreft.R.detach()).double(), torch.randn(5, 16, dtype=torch.float64)
    edit.take(lambda tokens: (tokens @ loreft.source.weight.T + loreft.source.bias) @ loreft.R)
    torch.testing.assert_close(edit(h), loreft(h))


def test_R_learns_a_planted_subspace() -> None:
    """DAS in small: the output is the source's part in a planted direction; R must find it."""
    torch.manual_seed(0)
    planted = torch.nn.functional.normalize(torch.randn(1, 16), dim=-1)
    base, source = torch.randn(2, 256, 16)
    wanted = base + (source - base) @ planted.T @ planted
    edit = rl.Interchange(16, 1)
    start = float((edit.R @ planted.T).detach().abs())
    optimiser = torch.optim.Adam(edit.parameters(), lr=2e-2)
    for _ in range(400):
        optimiser.zero_grad()
        edit.take(source)
        (edit(base) - wanted).square().mean().backward()
        optimiser.step()
    assert start < 0.9 < 0.999 < float((edit.R @ planted.T).detach().abs())


def test_one_source_for_all_tokens_is_affine_and_others_are_not(gpt2) -> None:
    edit, h = make_edit(rl.Interchange), torch.randn(5, D)
    torch.testing.assert_close(edit.affine().delta(h), edit.delta(h))
    for source in (torch.randn(5, D), lambda tokens: tokens + 1):
        edit.take(source)
        with pytest.raises(rl.NotAffineError, match="because its source differs between tokens"):
            edit.affine()
        assert edit.basis().shape == (3, D)
    reft = rl.Reft([(rl.Site(NAME, rl.All()), edit)])
    with pytest.raises(rl.NotAffineError, match="because its source differs between tokens"):
        rl.analysis.decompose(gpt2, reft, [rl.encode(gpt2, PROMPTS)])


def test_a_source_is_asked_for_and_checked() -> None:
    edit = rl.Interchange(D, 2)
    with pytest.raises(ValueError, match=r"no source activations: call edit\.take"):
        edit(torch.randn(3, D))
    edit.take(torch.randn(4, D))
    with pytest.raises(ValueError, match=r"must be \[32\] or \[3, 32\].*got \[4, 32\]"):
        edit(torch.randn(3, D))
    with pytest.raises(ValueError, match="rows of basis must be orthonormal"):
        rl.Interchange.along(torch.ones(2, D))


def test_a_source_is_no_part_of_the_edit() -> None:
    """Neither saved nor trained, also where it is a module."""
    edit = rl.Interchange(D, 2)
    names = set(edit.state_dict())
    edit.take(torch.nn.Linear(D, D))
    assert set(edit.state_dict()) == names
    assert edit.n_parameters() == 2 * D
    assert edit(torch.randn(3, D)).shape == (3, D)
