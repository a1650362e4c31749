"""Attribution patching against finite differences, and its correlation with the exact map against NumPy's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_bridge

import reftlens as rl
from reftlens.analysis.engine.grid import grid

CLEAN = ["The tower stands in the city of", "The weaver speaks"]
CORRUPTED = ["The river stands in the old of", "The tower lives"]


def metric_on(bridge):
    return rl.analysis.logit_difference_of(bridge, CLEAN, [" Ostra", " Tharic"], [" weaver", " city"])


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("architecture", "point", "over"),
    [
        ("gpt2", "mlp_out", "positions"),
        ("gpt2", "resid_pre", "positions"),
        ("gpt2", "z", "heads"),
        ("llama", "resid_pre", "positions"),
        ("llama", "z", "heads and positions"),
    ],
)
def test_estimates_are_the_slope_of_a_small_patch(architecture, point, over) -> None:
    """By central differences of whole runs."""
    bridge = make_bridge(architecture)
    clean, corrupted = (rl.encode(bridge, prompts) for prompts in (CLEAN, CORRUPTED))
    plain = [rl.encode(bridge, prompts[:1]) for prompts in (CLEAN, CORRUPTED)]
    metric = metric_on(bridge)
    result = rl.analysis.attribute(bridge, clean, corrupted, metric, point=point, over=over, progress=False)
    of = grid(bridge, point, over, n_pos=clean.tokens.shape[1])
    caches = [bridge.run_with_cache(batch.tokens, names_filter=list(of.names))[1] for batch in plain]
    for number in range(0, len(of.cells), 3):
        cell, (name,) = of.cells[number], of.cells[number].hook_names
        step = torch.zeros_like(caches[0][name])
        place = (
            slice(None),
            slice(None) if cell.pos is None else cell.pos,
            *(() if cell.head is None else (cell.head,)),
        )
        step[place] = (caches[0][name] - caches[1][name])[place]
        ends = []
        for size in (0.01, -0.01):
            hook = (name, lambda activation, hook, size=size, step=step: activation + size * step)
            ends.append(bridge.run_with_hooks(plain[1].tokens, fwd_hooks=[hook])[:, -1])
        target, foil = (
            bridge.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in (" Ostra", " weaver")
        )
        slope = ((ends[0] - ends[1])[0, target] - (ends[0] - ends[1])[0, foil]) / 0.02
        assert float(result.values[0].flatten()[number]) == pytest.approx(float(slope), abs=1e-3)
    assert float(result.values[0].abs().max()) > 0.01


def test_the_correlation_is_over_the_cells_of_each_checked_pair(gpt2) -> None:
    clean, corrupted = (rl.encode(gpt2, prompts) for prompts in (CLEAN, CORRUPTED))
    result = rl.analysis.attribute(gpt2, clean, corrupted, metric_on(gpt2), n_checked=9, progress=False)
    exact = rl.analysis.patch(gpt2, clean, corrupted, metric_on(gpt2), point="attn_out", progress=False)
    for pair in range(2):
        changes = (exact.values[pair] - exact.base[pair]).flatten().numpy()
        there = np.isfinite(changes)
        expected = np.corrcoef(changes[there], result.values[pair].flatten().numpy()[there])[0, 1]
        assert float(result.correlation[pair]) == pytest.approx(expected, abs=1e-4)
        assert abs(expected) < 1 - 1e-6, "an estimate that is exact everywhere has nothing to show"
    assert bool(result.values[1][:, int(clean.prompt_mask[1].sum()) :].isnan().all())
    assert len(result.to_dataframe()) == result.mean().numel()
    found = result.correlation.double()
    assert f"correlation with the exact map {float(found.mean()):.2f}, 95% interval" in repr(result)
    # Of two pairs there are four resamples: the interval is from the lower to the higher one.
    assert result.correlation_interval() == pytest.approx((float(found.min()), float(found.max())), abs=1e-6)
    assert not any(point.fwd_hooks or point.bwd_hooks for point in gpt2.hook_dict.values())
    with pytest.raises(ValueError, match="n_checked must be at least 1"):
        rl.analysis.attribute(gpt2, clean, corrupted, metric_on(gpt2), n_checked=0)


def test_the_correlation_has_an_interval_over_pairs_or_says_why_not(gpt2) -> None:
    clean, corrupted = (rl.encode(gpt2, prompts) for prompts in (CLEAN, CORRUPTED))
    result = rl.analysis.attribute(gpt2, clean, corrupted, metric_on(gpt2), n_checked=1, progress=False)
    assert "in one pair, which gives no interval)" in repr(result)
    assert all(np.isnan(result.correlation_interval()))
    many = replace(result, correlation=torch.rand(400, generator=torch.Generator().manual_seed(0)))
    low, high = many.correlation_interval()
    # The normal interval of a mean, to which the bootstrap's tends.
    half = 1.96 * float(many.correlation.std()) / 20
    assert (low, high) == pytest.approx(
        (float(many.correlation.mean()) - half, float(many.correlation.mean()) + half), abs=5e-3
    )
    holes = replace(result, correlation=torch.tensor([0.9, torch.nan, 0.7]))
    assert "0.80, 95% interval 0.70 to 0.90 over 2 pairs, undefined in 1 more" in repr(holes)
    same = rl.analysis.attribute(gpt2, clean, clean, metric_on(gpt2), progress=False)
    assert "undefined in all 2 checked pairs" in repr(same)
