"""The spread of an edit against plain hooks of Hugging Face, and a planted change of mind."""

from __future__ import annotations

import pytest
import torch
from architectures import make_hf
from conftest import PROMPTS, make_bridge, make_edit

import reftlens as rl

ONE_LENGTH = ["The tower stands in the city of", "The weaver stands in the city of"]


def edit_at(layer, positions):
    return rl.Reft([(rl.Site(f"blocks.{layer}.hook_resid_post", positions), make_edit(rl.LoReFT))])


def test_equals_plain_hooks_and_is_nothing_outside_the_cone() -> None:
    bridge, hf = make_bridge("gpt2"), make_hf("gpt2")
    reft = edit_at(1, rl.At(2))
    ((_, intervention),) = reft
    result = rl.analysis.spread(bridge, reft, ONE_LENGTH, subjects=["tower", "weaver"])
    tokens = rl.encode(bridge, ONE_LENGTH).tokens

    def states(edited):
        seen = []

        def hook(_module, _args, output, layer):
            if edited and layer == 1:
                mask = torch.arange(output.shape[1]) == 2
                output = torch.where(mask[:, None], intervention(output), output)
            seen.append(output.detach())
            return output

        from functools import partial

        handles = [b.register_forward_hook(partial(hook, layer=k)) for k, b in enumerate(hf.transformer.h)]
        hf(tokens)
        for handle in handles:
            handle.remove()
        return torch.stack(seen)

    base, edited = states(False), states(True)
    expected = ((edited - base).norm(dim=-1) / base.norm(dim=-1)).mean(1)
    torch.testing.assert_close(result.distance.values[1:], expected, rtol=1e-4, atol=1e-5)
    assert float(result.distance.values[:2].abs().max()) == 0.0
    assert float(result.distance.values[:, :2].abs().max()) == 0.0
    assert float(result.distance.values[3, 3:].min()) > 1e-3, "attention carries the change on"
    torch.testing.assert_close(result.distance.control[2, 2], result.distance.values[2, 2], rtol=1e-4, atol=1e-5)
    read = [hf.lm_head(hf.transformer.ln_f(run)).argmax(-1) for run in (base, edited)]
    torch.testing.assert_close(result.mind.values[1:], (read[0] != read[1]).float().mean(1))
    assert [t for t, star in zip(result.mind.tokens, result.mind.starred, strict=True) if star] == [" tower"]
    assert len(result.to_dataframe()) == 4 * tokens.shape[1]
    assert rl.plot.effect_map(result.distance) is not None


def test_the_mind_is_changed_where_another_token_was_written() -> None:
    bridge = make_bridge("gpt2")
    edit = rl.SteeringVector(32)
    direction = bridge.W_U[:, 7].detach()
    with torch.no_grad():
        for parameter in edit.parameters():
            parameter.copy_(1000 * direction.view(parameter.shape) / direction.norm())
    reft = rl.Reft([(rl.Site("blocks.2.hook_resid_post", rl.Last(1)), edit)])
    result = rl.analysis.spread(bridge, reft, ONE_LENGTH)
    assert float(result.mind.values[3, -1]) == 1.0
    others = result.mind.values.clone()
    others[3, -1] = 0.0
    assert float(others.abs().max()) == 0.0


def test_spread_refuses_prompts_that_do_not_align(gpt2) -> None:
    with pytest.raises(ValueError, match="equal length"):
        rl.analysis.spread(gpt2, edit_at(1, rl.Last(1)), PROMPTS)
    with pytest.raises(ValueError, match="n_control must be at least 1"):
        rl.analysis.spread(gpt2, edit_at(1, rl.Last(1)), ONE_LENGTH, n_control=0)
