"""An edit's effect split by attention patterns, against whole runs with plain hooks, and on heads set by hand."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from conftest import PROMPTS, make_bridge
from test_mediation import edit_on, metric_on, one_run

import reftlens as rl
from reftlens.benchmark.handmade import Handmade, attention_reads_it, attention_turns
from reftlens.bridge import pattern_hooks

engine = import_module("reftlens.analysis.channels")
EXACT = {"rtol": 0, "atol": 1e-5}


def plainly(bridge, reft, batch, metric, heads):
    """Frozen, patterns alone, and opened and closed for these heads, each by one whole run."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(bridge.cfg.n_layers)]

    def seen():
        kept = {}
        hooks = [(name, lambda p, hook, name=name: kept.update({name: p.clone()})) for name in names]
        return one_run(bridge, batch, metric, hooks), kept

    def holding(to, *, only=None, but=None):
        def write(name):
            def hook_fn(pattern, hook):
                layer, out = int(name.split(".")[1]), pattern.clone()
                for head in range(pattern.shape[1]):
                    if (layer, head) == only or (only is None and (layer, head) != but):
                        out[:, head] = to[name][:, head]
                return out

            return hook_fn

        return [(name, write(name)) for name in names]

    base, patterns = seen()
    with reft.hooks(bridge, batch):
        edited, moved = seen()
        frozen = one_run(bridge, batch, metric, holding(patterns))
        opened = [one_run(bridge, batch, metric, holding(patterns, but=head)) - frozen for head in heads]
        closed = [edited - one_run(bridge, batch, metric, holding(patterns, only=head)) for head in heads]
    alone = one_run(bridge, batch, metric, holding(moved))
    return edited - base, frozen - base, alone - base, opened, closed


@pytest.mark.sampled(2)
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_every_part_equals_a_whole_run(architecture) -> None:
    bridge = make_bridge(architecture)
    # At the ends of prompts of different lengths, with padding on the left: columns are cut off in front.
    batch = rl.encode(bridge, PROMPTS, padding_side="left")
    sites = [("blocks.0.hook_resid_post", "l3"), ("blocks.1.attn.hook_q", "l1"), ("blocks.1.hook_resid_post", "l1")]
    reft, metric = edit_on(bridge, sites).scaled(5.0), metric_on(bridge)
    split = rl.analysis.channels(bridge, reft, batch, metric, progress=False).edit
    heads = [(1, 0), (1, 3), (2, 1), (2, 2)]
    whole, frozen, alone, opened, closed = plainly(bridge, reft, batch, metric, heads)
    torch.testing.assert_close(split.whole, whole, **EXACT)
    torch.testing.assert_close(split.frozen, frozen, **EXACT)
    torch.testing.assert_close(split.patterns, alone, **EXACT)
    for (layer, head), first, second in zip(heads, opened, closed, strict=True):
        torch.testing.assert_close(split.opened[:, layer, head], first, **EXACT)
        torch.testing.assert_close(split.closed[:, layer, head], second, **EXACT)
    assert not torch.stack([split.opened, split.closed])[:, :, 0].any(), "the edit is behind block 0"
    for part in (split.frozen, split.needs, split.patterns, split.opened[:, 1:], split.closed[:, 1:]):
        assert float(part.abs().max()) > 1e-3
    torch.testing.assert_close(split.frozen + split.patterns + split.jointly, split.whole, **EXACT)


def flipped(model: Handmade, where: str) -> rl.Reft:
    """Turns a direction round, which leaves every length as it is, so that nothing leaks through LayerNorm."""
    turn = rl.Interchange.along(model.true)
    turn.take(lambda variable: -variable)
    return rl.Reft([(rl.Site("blocks.0.hook_resid_post", rl.parse(where)), turn)])


def difference(logits, pair):
    return logits[:, 0] - logits[:, 1]


def test_a_head_that_only_moves_values_needs_no_changed_pattern() -> None:
    model = attention_reads_it(n_pairs=8)
    result = rl.analysis.channels(model.bridge, flipped(model, "f1"), model.base, difference, progress=False)
    split = result.edit
    assert float(split.whole.abs().min()) > 0.1
    torch.testing.assert_close(split.frozen, split.whole, **EXACT)
    for part in (split.needs, split.patterns, split.opened, split.closed):
        torch.testing.assert_close(part, torch.zeros_like(part), **EXACT)
    # In random directions most of the effect is gone.
    assert float(result.control.whole.abs().mean()) < 0.5 * float(split.whole.abs().mean())


def test_a_head_that_only_turns_its_pattern_needs_it_and_no_value() -> None:
    model = attention_turns(n_pairs=8)
    split = rl.analysis.channels(model.bridge, flipped(model, "l1"), model.base, difference, progress=False).edit
    assert float(split.whole.abs().min()) > 0.1
    torch.testing.assert_close(split.frozen, torch.zeros_like(split.frozen), **EXACT)
    for part in (split.patterns, split.opened[:, 1, 0], split.closed[:, 1, 0]):
        torch.testing.assert_close(part, split.whole, **EXACT)
    for part in (split.jointly, split.opened[:, 1, 1], split.closed[:, 1, 1], split.opened[:, 0]):
        torch.testing.assert_close(part, torch.zeros_like(part), **EXACT)


def test_an_edit_that_does_both_is_split_between_its_two_heads() -> None:
    """Neither head changes what the other reads, and the logits are linear but for the final norm's common length."""
    model = attention_turns(moves=True, n_pairs=8)
    split = rl.analysis.channels(model.bridge, flipped(model, "l1"), model.base, difference, progress=False).edit
    assert float(split.frozen.abs().max()) > 0.1
    assert float(split.needs.abs().min()) > 0.1
    torch.testing.assert_close(split.opened[:, 1, 0], split.needs, **EXACT)
    torch.testing.assert_close(split.closed[:, 1, 0], split.needs, **EXACT)
    assert float(split.opened[:, 1, 1].abs().max()) < 1e-5


def test_patterns_are_taken_where_their_layers_lie(gpt2) -> None:
    """As in a sweep, "meta" stands for a device where the logits are, and no layer is."""
    batch, reft = rl.encode(gpt2, PROMPTS), edit_on(gpt2)
    names = pattern_hooks(gpt2)
    base, patterns = engine._recorded(gpt2, batch, names)
    held, found = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.5, []
    for run in (base, replace(base, logits=base.logits.to("meta"))):
        runs = engine._Runs(gpt2, run, difference, names, -1, 0, 1 << 24)
        found.append(runs.values(held, patterns, reft.edits(batch)))
    torch.testing.assert_close(*found, **EXACT)
    assert found[0].shape == (len(PROMPTS), 2)


def test_patterns_that_are_not_used_are_refused(monkeypatch) -> None:
    bridge = make_bridge("gpt2")
    reft, metric = edit_on(bridge), metric_on(bridge)
    batch = rl.encode(bridge, PROMPTS, [" Ostra"] * 3)
    with pytest.raises(ValueError, match="without completions"):
        rl.analysis.channels(bridge, reft, batch, metric)
    from reftlens.bridge import patterns

    assert len(patterns.pattern_hooks(bridge)) == 3
    monkeypatch.setattr(patterns, "proved", lambda bridge, what, prove: prove())
    attention = type(bridge.blocks[1].attn)
    plain = attention._reconstruct_attention

    def late(self, *args, **kwargs):
        """Fires the point after the pattern was used, as some architectures do."""
        point, self.hook_pattern = self.hook_pattern, torch.nn.Identity()
        try:
            output, pattern = plain(self, *args, **kwargs)
        finally:
            self.hook_pattern = point
        return output, self.hook_pattern(pattern)

    monkeypatch.setattr(attention, "_reconstruct_attention", late)
    with pytest.raises(ValueError, match="attention patterns of GPT2LMHeadModel cannot be held"):
        rl.analysis.channels(bridge, reft, PROMPTS, metric)
