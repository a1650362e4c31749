"""Projections onto an edit's write directions, against the base's own activations and the edit's equation."""

from __future__ import annotations

import pytest
import torch

import reftlens as rl
from reftlens import analysis

GROUPS = {"moved": ["The tower stands in the city of", "The old tower by the river"], "kept": ["The weaver speaks"]}
PROMPTS = [prompt for group in GROUPS.values() for prompt in group]
HOOK = "blocks.1.hook_resid_post"


def planted(width: int) -> tuple[rl.Reft, torch.Tensor]:
    """An edit that writes 3 along one row of a plane and h[0] along the other, at every prompt token."""
    plane = torch.linalg.qr(torch.randn(width, 2, generator=torch.Generator().manual_seed(0)))[0].T
    edit = rl.DiReFT(width, rank=2)
    with torch.no_grad():
        edit.write.copy_(plane)
        edit.read.weight.zero_()
        edit.read.weight[1, 0] = 1.0
        edit.read.bias.copy_(torch.tensor([3.0, 0.0]))
    return rl.Reft([(rl.Site(HOOK, rl.All()), edit)]), plane


def test_moves_lie_in_the_planted_plane_and_are_as_long_as_the_change(gpt2) -> None:
    reft, plane = planted(gpt2.cfg.d_model)
    [found] = analysis.project(gpt2, reft, GROUPS)
    batch = rl.encode(gpt2, PROMPTS)
    _, cache = gpt2.run_with_cache(batch.tokens)
    h = batch.at_last_prompt_token(cache[HOOK])
    change = torch.stack([torch.full((3,), 3.0), h[:, 0]], dim=1)
    # Of the plane the decomposition may turn or mirror the axes: lengths and inner products stay.
    for mine, theirs in ((found.before, h @ plane.T), (found.after - found.before, change)):
        torch.testing.assert_close(mine @ mine.T, theirs @ theirs.T, rtol=1e-4, atol=1e-4)
    cross, expected = found.before @ (found.after - found.before).T, h @ plane.T @ change.T
    torch.testing.assert_close(cross, expected, rtol=1e-4, atol=1e-4)
    assert found.groups == ("moved", "moved", "kept")
    assert [PROMPTS[place].endswith(tokens[-1]) for place, tokens in enumerate(found.prompts)] == [True] * 3
    # Turned to random directions, the same change has 2 of 32 dimensions of its square in this plane, on average.
    turned = (found.control - found.before).norm(dim=1)
    assert bool((turned < 0.8 * change.norm(dim=1)).all())


def test_at_says_which_of_the_edited_tokens(gpt2) -> None:
    reft, _ = planted(gpt2.cfg.d_model)
    [everywhere] = analysis.project(gpt2, reft, GROUPS, at=rl.All())
    assert len(everywhere.groups) == int(rl.encode(gpt2, PROMPTS).prompt_mask.sum())
    with pytest.raises(ValueError, match="does not edit any token that Last"):
        analysis.project(gpt2, rl.Reft([(rl.Site(HOOK, rl.First(1)), reft.interventions[0])]), GROUPS, at=rl.Last(1))


def test_an_edit_of_one_direction_has_no_plane(gpt2, make_reft) -> None:
    with pytest.raises(ValueError, match="no site of this edit has two write directions"):
        analysis.project(gpt2, make_reft((HOOK,), "l1", rank=1), GROUPS)
