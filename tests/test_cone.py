"""The cone against the whole run: logits, losses and gradients, ragged batches, both padding sides."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from architectures import CAUSAL, MASKED
from conftest import COMPLETIONS, PROMPTS, make_bridge

import reftlens as rl
from reftlens.bridge import last_block_alone
from reftlens.cone.hold import boundary_of, hold, run_cone

SITES = {
    "resid_post": ("blocks.1.hook_resid_post", 1),
    "last resid_post": ("blocks.2.hook_resid_post", 2),
    "resid_pre": ("blocks.2.hook_resid_pre", 1),
    "attn_out": ("blocks.1.hook_attn_out", 0),
    "first resid_pre": ("blocks.0.hook_resid_pre", -1),
    "mlp_out": ("blocks.2.hook_mlp_out", 1),
}


def reft_at(hook_name, positions, dtype):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return rl.Reft([(rl.Site(hook_name, positions), rl.LoReFT(32, 3))]).to(dtype)


def whole_run(bridge, batch):
    return bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)


RUNS = [
    *(("gpt2", torch.float64, 1e-10, site) for site in SITES),
    *((architecture, torch.float32, 1e-5, site) for architecture in ("gpt2", "llama") for site in SITES),
    *(
        pytest.param(architecture, torch.float32, 1e-5, "resid_post", marks=pytest.mark.slow)
        for architecture in CAUSAL
        if architecture not in ("gpt2", "llama")
    ),
    *((architecture, torch.float64, 1e-10, "resid_post") for architecture in CAUSAL if architecture != "gpt2"),
    *((architecture, torch.float32, 1e-5, "resid_post") for architecture in MASKED),
]
"""Every causal architecture at one site, in float64 and (slow) float32; two of them at all."""


@pytest.fixture
def in_double(monkeypatch):
    """Makes a bridge in float64, also of architectures that `load_bridge` refuses in it.

    transformers takes their softmax in float32, where the mask of a padded batch in float64 is minus infinity. Here
    softmax keeps float64.
    """
    softmax = torch.nn.functional.softmax

    def wide(scores, dim=None, _stacklevel=3, dtype=None):
        return softmax(scores, dim=dim, dtype=scores.dtype if scores.dtype == torch.float64 else dtype)

    monkeypatch.setattr(torch.nn.functional, "softmax", wide)
    monkeypatch.setattr("reftlens.bridge.loading._DOUBLE", ("",))


@pytest.mark.sampled(24)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["l1", "f1", rl.At(2) | rl.Last(1)])
@pytest.mark.parametrize(("architecture", "dtype", "tolerance", "site"), RUNS)
def test_cone_equals_the_whole_run(architecture, site, positions, side, dtype, tolerance, request) -> None:
    if dtype == torch.float64:
        request.getfixturevalue("in_double")
    bridge = make_bridge(architecture, dtype=dtype)
    hook_name, boundary = SITES[site]
    reft = reft_at(hook_name, positions, dtype)
    batch = rl.encode(bridge, PROMPTS, COMPLETIONS, padding_side=side)
    edits = reft.edits(batch)
    held = hold(bridge, batch, edits)
    assert held.boundary == boundary == boundary_of(bridge, [hook_name])
    assert architecture in CAUSAL or held.start == 0, "a bidirectional model has no cone in positions"
    with reft.hooks(bridge, batch):
        whole = whole_run(bridge, batch)
    cone, again = run_cone(bridge, held, edits), run_cone(bridge, held, edits)
    real = batch.attention_mask[:, held.start :].bool()
    whole = whole[:, held.start :]
    scale = float(whole[real].detach().abs().max())
    assert float((cone - whole)[real].detach().abs().max()) < tolerance * scale
    assert torch.equal(again, cone), "a second run from the same held values"
    # Ragged: other tokens of each example.
    some = batch.attention_mask.bool() & (torch.arange(batch.tokens.shape[1]) >= batch.last_prompt_index[:, None])
    some[:, : held.start] = False
    part = run_cone(bridge, held, edits, logits_at=some)
    assert part.shape[0] == int(some.sum()) > len(batch)
    torch.testing.assert_close(part, cone[some[:, held.start :]], rtol=tolerance, atol=tolerance)
    base = whole_run(bridge, batch)[:, held.start :]
    assert float((whole - base)[real].detach().abs().max()) > 1e-3 * scale, "an edit without effect proves nothing"
    weight = torch.randn(cone.shape, generator=torch.Generator().manual_seed(0), dtype=dtype) * real[..., None]
    ours, theirs = (torch.autograd.grad((run * weight).sum(), list(reft.parameters())) for run in (cone, whole))
    for mine, reference in zip(ours, theirs, strict=True):
        assert float((mine - reference).norm()) < tolerance * max(1.0, float(reference.norm()))
        assert float(reference.norm()) > 0


def test_the_base_is_untouched_and_the_cone_is_small(bridge) -> None:
    batch = rl.encode(bridge, PROMPTS, COMPLETIONS, padding_side="left")
    reft = reft_at("blocks.1.hook_resid_post", "l1", torch.float32)
    before = whole_run(bridge, batch)
    held = hold(bridge, batch, reft.edits(batch))
    assert held.start == int(batch.last_prompt_index.min())
    assert held.resid.shape[1] == batch.tokens.shape[1] - held.start
    assert len(held.past) == 1, "keys and values of the one block that is run"
    assert held.n_bytes() < 4 * 32 * 3 * batch.tokens.numel()
    run_cone(bridge, held, reft.edits(batch))
    assert torch.equal(whole_run(bridge, batch), before)
    too_wide = [replace(edit, mask=edit.mask[:1]) for edit in reft.edits(batch)]
    with pytest.raises(ValueError, match="pass the mask of the batch"):
        run_cone(bridge, held, too_wide)
    assert torch.equal(whole_run(bridge, batch), before)


def test_logits_before_the_cone_are_refused_and_none_may_be_wanted(gpt2) -> None:
    batch = rl.encode(gpt2, PROMPTS, COMPLETIONS)
    edits = reft_at("blocks.1.hook_resid_post", "l1", torch.float32).edits(batch)
    held = hold(gpt2, batch, edits)
    with pytest.raises(ValueError, match=f"selects tokens before column {held.start}"):
        run_cone(gpt2, held, edits, logits_at=batch.prompt_mask)
    nothing = torch.zeros_like(batch.prompt_mask)
    assert run_cone(gpt2, held, edits, logits_at=nothing).shape == (0, 320)


def test_an_edit_of_the_unembedding_sees_all_tokens(gpt2) -> None:
    batch = rl.encode(gpt2, PROMPTS, COMPLETIONS)
    reft = reft_at("unembed.hook_in", "l1", torch.float32)
    held = hold(gpt2, batch, reft.edits(batch))
    with reft.hooks(gpt2, batch):
        whole = whole_run(gpt2, batch)
    some = batch.attention_mask.bool()
    some[:, : held.start] = False
    torch.testing.assert_close(
        run_cone(gpt2, held, reft.edits(batch), logits_at=some), whole[some], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("earlier", [("blocks.0.hook_resid_post", "l1"), ("blocks.2.hook_resid_post", "f2+l1")])
def test_an_edit_outside_the_held_cone_is_refused(gpt2, earlier) -> None:
    batch = rl.encode(gpt2, PROMPTS, COMPLETIONS)
    held = hold(gpt2, batch, reft_at("blocks.2.hook_resid_post", "l1", torch.float32).edits(batch))
    with pytest.raises(ValueError, match="outside the held cone"):
        run_cone(gpt2, held, reft_at(*earlier, torch.float32).edits(batch))


def test_a_later_edit_fits_into_a_held_cone(gpt2) -> None:
    batch = rl.encode(gpt2, PROMPTS, COMPLETIONS)
    wide, late = (
        reft_at(*at, torch.float32) for at in (("blocks.0.hook_resid_post", "f1"), ("blocks.2.hook_attn_out", "l1"))
    )
    held = hold(gpt2, batch, wide.edits(batch))
    with late.hooks(gpt2, batch):
        whole = whole_run(gpt2, batch)
    cone = run_cone(gpt2, held, late.edits(batch))
    real = batch.attention_mask[:, held.start :].bool()
    torch.testing.assert_close(cone[real], whole[:, held.start :][real], rtol=1e-5, atol=1e-5)


def test_the_log_says_once_that_a_bidirectional_model_saves_layers_alone(caplog) -> None:
    bridge = make_bridge("bert")
    batch = rl.encode(bridge, PROMPTS)
    edits = reft_at("blocks.1.hook_resid_post", "f1", torch.float32).edits(batch)
    with caplog.at_level("INFO", logger="reftlens.cone.hold"):
        assert all(hold(bridge, batch, edits).start == 0 for _ in range(3))
    assert caplog.text.count("BertForMaskedLM is bidirectional: its cone skips early layers") == 1


def test_edits_without_tokens_have_no_cone(gpt2) -> None:
    with pytest.raises(ValueError, match="no light cone"):
        hold(gpt2, rl.encode(gpt2, PROMPTS), [])


@pytest.mark.parametrize("architecture", CAUSAL)
def test_the_last_block_for_some_tokens_alone_leaves_their_logits(architecture):
    bridge = make_bridge(architecture)
    batch = rl.encode(bridge, PROMPTS, padding_side="left")
    wanted = batch.prompt_mask & (torch.arange(batch.tokens.shape[1]) % 2 == 0)
    with torch.no_grad():
        whole = whole_run(bridge, batch)
        with last_block_alone(bridge, wanted):
            some = whole_run(bridge, batch)
        assert torch.equal(whole_run(bridge, batch), whole), "nothing stays behind"
    assert (some[wanted] - whole[wanted]).abs().max() < 1e-5
    assert not torch.allclose(some[batch.prompt_mask & ~wanted], whole[batch.prompt_mask & ~wanted], atol=1e-3)
