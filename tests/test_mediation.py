"""Mediation against whole runs, and a path built by hand."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from architectures import make_hf
from conftest import PROMPTS, make_bridge, make_edit, make_tokenizer

import reftlens as rl
from reftlens.analysis.engine.grid import grid

SITES = [("blocks.0.hook_resid_post", "f3"), ("blocks.1.attn.hook_q", "l1"), ("blocks.1.hook_resid_post", "l1")]


def edit_on(bridge, hooks=SITES):
    shapes = [32 if "resid" in name else bridge.cfg.n_heads * 8 for name, _ in hooks]
    edits = [make_edit(rl.LoReFT, width, 2, seed=k) for k, width in enumerate(shapes)]
    return rl.Reft([(rl.Site(name, rl.parse(p)), edit) for (name, p), edit in zip(hooks, edits, strict=True)])


def metric_on(bridge):
    return rl.analysis.logit_difference_of(
        bridge, PROMPTS, [" Ostra", " Tharic", " river"], [" weaver", " city", " tower"]
    )


def cached(bridge, batch, names):
    return bridge.run_with_cache(batch.tokens, names_filter=list(names), attention_mask=batch.attention_mask)[1]


def one_run(bridge, batch, metric, hooks):
    with bridge.hooks(fwd_hooks=hooks):
        logits = bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
    return metric(batch.at_last_prompt_token(logits), torch.arange(len(batch))).detach()


def plainly(bridge, reft, batch, metric, point, over, direction):
    """Every cell by a whole run; the components that are moved are written before the edit acts."""
    n_pos = batch.tokens.shape[1]
    names = grid(bridge, point, over, n_pos=n_pos).names
    base = cached(bridge, batch, names)
    with reft.hooks(bridge, batch):
        edited = cached(bridge, batch, names)
    source = edited if direction == "edited into base" else base

    def write(activation, hook, name, place):
        new = activation.clone()
        new[place] = source[name][place]
        return new

    def run(name, place):
        hooks = [(name, partial(write, name=name, place=place))]
        if direction == "edited into base":
            return one_run(bridge, batch, metric, hooks)
        with reft.hooks(bridge, batch):
            return one_run(bridge, batch, metric, hooks)

    everywhere = slice(None)
    places = (
        [(everywhere, everywhere, h) for h in range(4)] if over == "heads" else [(everywhere, p) for p in range(n_pos)]
    )
    return torch.stack([torch.stack([run(name, place) for place in places]) for name in names]).permute(2, 0, 1)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("direction", ["edited into base", "base into edited"])
@pytest.mark.parametrize(
    ("architecture", "point", "over"),
    [
        *((form, "z", "heads") for form in ("gpt2", "llama", "gpt_neox", "gemma2")),
        ("gpt_neox", "mlp_out", "positions"),
        *(pytest.param(form, "mlp_out", "positions", marks=pytest.mark.slow) for form in ("gpt2", "llama", "gemma2")),
    ],
)
def test_every_cell_equals_a_whole_run(architecture, point, over, direction) -> None:
    bridge = make_bridge(architecture)
    reft, batch, metric = edit_on(bridge), rl.encode(bridge, PROMPTS), metric_on(bridge)
    options = {"point": point, "over": over, "direction": direction, "progress": False}
    result = rl.analysis.mediate(bridge, reft, batch, metric, **options)
    expected = plainly(bridge, reft, batch, metric, point, over, direction)
    there = result.values.isfinite()
    torch.testing.assert_close(result.values[there], expected[there], rtol=0, atol=1e-5)
    assert float((result.values - result.base[:, None, None]).nan_to_num().abs().max()) > 0.01
    whole = (result.source - result.base).abs()
    assert float(whole.max()) > 0.05
    words = ["".join(tokens[-2:]) for tokens in result.prompts]
    assert all(prompt.endswith(end) for prompt, end in zip(PROMPTS, words, strict=True) if "(" not in end)
    assert len(set(words)) > 1


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_the_direct_effect_is_a_run_with_every_component_as_in_the_base(architecture) -> None:
    bridge = make_bridge(architecture)
    reft, batch, metric = edit_on(bridge, SITES[::2]), rl.encode(bridge, PROMPTS), metric_on(bridge)
    names = [f"blocks.{layer}.hook_{kind}" for layer in range(3) for kind in ("attn_out", "mlp_out")]
    base = cached(bridge, batch, names)
    hooks = [(name, lambda activation, hook, name=name: base[name]) for name in names]
    with reft.hooks(bridge, batch):
        expected = one_run(bridge, batch, metric, hooks)
    expected = expected - one_run(bridge, batch, metric, [])
    torch.testing.assert_close(rl.analysis.direct_effect(bridge, reft, batch, metric), expected, rtol=0, atol=1e-5)
    assert float(expected.abs().max()) > 0.05


def silenced(*, but: tuple[int, int]):
    """A GPT-2 whose blocks behind the first put out nothing, except one head."""
    model = make_hf("gpt2")
    layer, head = but
    with torch.no_grad():
        for number, block in enumerate(model.transformer.h[1:], start=1):
            kept = block.attn.c_proj.weight[8 * head : 8 * head + 8].clone()
            for part in (block.attn.c_proj, block.mlp.c_proj):
                part.weight.zero_()
                part.bias.zero_()
            if number == layer:
                block.attn.c_proj.weight[8 * head : 8 * head + 8] = kept
    return rl.load_bridge(hf_model=model, tokenizer=make_tokenizer())


def test_a_path_built_by_hand_is_found_and_no_other() -> None:
    """In nats, where float32 is good to 1e-5: shares of an effect divide that error by the effect, which may be small."""
    bridge = silenced(but=(2, 3))
    batch, metric = rl.encode(bridge, PROMPTS), metric_on(bridge)
    early = edit_on(bridge, [("blocks.0.hook_resid_post", "f2")]).scaled(10.0)
    close = {"rtol": 0, "atol": 1e-5}
    for direction in ("edited into base", "base into edited"):
        heads = rl.analysis.mediate(bridge, early, batch, metric, direction=direction, progress=False)
        expected = heads.base[:, None, None].repeat(1, 3, 4)
        expected[:, 2, 3] = heads.source
        torch.testing.assert_close(heads.values, expected, **close)
        assert float((heads.source - heads.base).abs().min()) > 0.01
        mlps = rl.analysis.mediate(
            bridge, early, batch, metric, point="mlp_out", over="positions", direction=direction, progress=False
        )
        # Columns that a prompt does not have are NaN.
        there = mlps.values.isfinite()
        assert int(there.sum()) == 3 * int(batch.prompt_mask.sum())
        torch.testing.assert_close(mlps.values[there], mlps.base[:, None, None].expand_as(there)[there], **close)
    by_token = rl.analysis.mediate(bridge, early, batch, metric, over="heads and positions", progress=False)
    last = batch.last_prompt_index
    carried = by_token.values[torch.arange(3), 2 * 4 + 3, last]
    torch.testing.assert_close(carried, by_token.source, **close)
    assert float(rl.analysis.direct_effect(bridge, early, batch, metric).abs().max()) < 1e-5
    late = edit_on(bridge, [("blocks.2.hook_resid_post", "l1")])
    heads = rl.analysis.mediate(bridge, late, batch, metric, progress=False)
    torch.testing.assert_close(heads.values, heads.base[:, None, None].expand_as(heads.values), **close)
    torch.testing.assert_close(
        rl.analysis.direct_effect(bridge, late, batch, metric), heads.source - heads.base, **close
    )


def test_mediation_refuses_what_it_cannot_tell_apart(gpt2) -> None:
    batch, metric = rl.encode(gpt2, PROMPTS), metric_on(gpt2)
    at_mlp = edit_on(gpt2, [("blocks.1.hook_resid_post", "f1")])
    with pytest.raises(ValueError, match="not the output of a component"):
        rl.analysis.mediate(gpt2, at_mlp, batch, metric, point="resid_pre", over="positions")
    with pytest.raises(ValueError, match="direction must be"):
        rl.analysis.mediate(gpt2, at_mlp, batch, metric, direction="noise")
    at_mlp = rl.Reft([(rl.Site("blocks.1.hook_mlp_out", rl.First(1)), rl.LoReFT(32, 2))])
    with pytest.raises(ValueError, match="hook_mlp_out itself"):
        rl.analysis.mediate(gpt2, at_mlp, batch, metric, point="mlp_out", over="positions")
