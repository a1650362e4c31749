"""Which sites does a trained edit need, and which are sufficient? Runs the edit with subsets of its sites.

Let v(S) be the mean effect of the edit with only the sites in S. The result has v({i}) (only site
i), v(N) - v(N - i) (without site i), and the Shapley value: the contribution of site i when it is
added to the sites before it, averaged over all orders (Shapley 1953). Shapley values sum to v(N).
This holds exactly both when all 2^n sets are run and when orders are sampled, because the
contributions along each order sum to v(N) (Castro et al. 2009, doi:10.1016/j.cor.2008.04.004).

A small value does not prove that a site is idle: another site may substitute for it, which the
interactions show. The control is each site alone, with changes of the same norm in random
directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import bootstrap_ci, derive_generator

from reftlens.analysis.controls.turned import turned_draws
from reftlens.analysis.engine.coalitions import Coalitions, whole_sites
from reftlens.analysis.metrics import Metric
from reftlens.data import Given, as_batch
from reftlens.edit.hooks import Edit
from reftlens.edit.reft import Reft
from reftlens.results import Ablation

Set = frozenset[int]
"""Indices of the sites that are kept."""

# 4,096 subsets, and twice as many for each further site.
MOST_EXACT = 12
"""Maximum number of sites for which all subsets are run."""


def ablate(
    bridge: TransformerBridge,
    reft: Reft,
    prompts: Given,
    metric: Metric,
    *,
    n_orders: int = 200,
    n_control: int = 4,
    seed: int = 0,
    memory_bytes: int = 1 << 30,
    progress: bool = True,
) -> Ablation:
    """Attributes the effect of an edit to its sites.

    Args:
        bridge: the base; causal.
        reft: the edit.
        prompts: texts, conversations or one batch, without completions.
        metric: of the logits after each prompt.
        n_orders: sampled orders, for an edit of more than 12 sites.
        n_control: random-direction controls to average over.
        seed: seed of the orders and the control.
        memory_bytes: approximate limit for the activations of one run.
        progress: show a progress bar.

    Raises:
        ValueError: If n_orders is below 2 or n_control is below 1.
    """
    if n_orders < 2 or n_control < 1:
        raise ValueError(f"n_orders must be at least 2 and n_control at least 1, got {n_orders} and {n_control}")
    batch = as_batch(bridge, prompts)
    runs = Coalitions(bridge, batch, metric, memory_bytes=memory_bytes)
    edits = reft.edits(batch)
    n, bar = len(edits), "ablation" if progress else ""
    exact = n <= MOST_EXACT
    generator = derive_generator(seed, "ablation")
    orders = [] if exact else [torch.randperm(n, generator=generator).tolist() for _ in range(n_orders)]
    sets = (
        list(_every_set(n))
        if exact
        else sorted({*_pairs_left_out(n), *(s for o in orders for s in _along(o))}, key=sorted)
    )
    value = _values(runs, edits, sets, progress=bar)
    everything = frozenset(range(n))
    if exact:
        # All sets were run: nothing is sampled, so the interval has no width.
        shapley = low = high = _shapley(value, n)
    else:
        added = torch.tensor([_added(value, order) for order in orders], dtype=torch.float64)
        # Over orders, the only thing that is sampled here.
        shapley, (low, high) = added.mean(0), bootstrap_ci(added, dim=0, generator=generator)
    control, control_whole, control_shapley = _control(runs, reft, n_control, seed)
    return Ablation(
        whole=value[everything],
        sites=reft.site_names,
        alone=torch.tensor([value[frozenset([i])] for i in range(n)]),
        left_out=torch.tensor([value[everything] - value[everything - {i}] for i in range(n)]),
        shapley=shapley.float(),
        low=low.float(),
        high=high.float(),
        interaction=_interactions(value, n),
        control=control,
        exact=exact,
        n_examples=len(batch),
        control_whole=control_whole,
        control_shapley=control_shapley,
    )


def _values(runs: Coalitions, edits: Sequence[Edit], sets: Sequence[Set], *, progress: str = "") -> dict[Set, float]:
    """Computes v of each set, averaged over examples."""
    chosen = torch.zeros(len(sets), len(edits), dtype=torch.bool)
    for row, members in enumerate(sets):
        chosen[row, list(members)] = True
    effects = runs.effects(edits, whole_sites(edits), chosen, progress=progress).mean(1)
    return dict(zip(sets, effects.tolist(), strict=True))


def _every_set(n: int) -> Iterator[Set]:
    return (frozenset(members) for size in range(n + 1) for members in combinations(range(n), size))


def _pairs_left_out(n: int) -> Iterator[Set]:
    """Returns the set of all sites, those without one or two sites, and the single sites."""
    everything = frozenset(range(n))
    # What left_out and the interactions read; the sampled orders rarely contain these sets.
    yield from (everything - set(left) for size in range(3) for left in combinations(range(n), size))
    yield from (frozenset([i]) for i in range(n))


def _along(order: Sequence[int]) -> Iterator[Set]:
    """Returns the sets that arise when sites are added in an order."""
    return (frozenset(order[:size]) for size in range(len(order) + 1))


def _added(value: Mapping[Set, float], order: Sequence[int]) -> list[float]:
    """Computes the contribution of each site along an order, by site."""
    steps = [value[members] for members in _along(order)]
    added = {site: after - before for site, before, after in zip(order, steps[:-1], steps[1:], strict=True)}
    return [added[site] for site in range(len(order))]


def _shapley(value: Mapping[Set, float], n: int) -> Float[Tensor, " site"]:
    """sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S))."""
    out = torch.zeros(n, dtype=torch.float64)
    for members in value:
        # |S|! (n - |S| - 1)! / n!, by a binomial.
        weight = 1 / (n * math.comb(n - 1, len(members))) if len(members) < n else 0.0
        for site in set(range(n)) - members:
            out[site] += weight * (value[members | {site}] - value[members])
    return out


def _interactions(value: Mapping[Set, float], n: int) -> Float[Tensor, "site site"]:
    everything = frozenset(range(n))
    out = torch.full((n, n), torch.nan)
    for i, j in combinations(range(n), 2):
        # v(N) - v(N - i) - v(N - j) + v(N - i - j): 0 if i adds the same with and without j.
        left_out = value[everything - {i}] + value[everything - {j}] - value[everything - {i, j}]
        out[i, j] = out[j, i] = value[everything] - left_out
    return out


def _control(
    runs: Coalitions, reft: Reft, n_draws: int, seed: int
) -> tuple[Float[Tensor, " site"], float, Float[Tensor, " site"] | None]:
    """Computes what random directions do, averaged over draws: each site alone, all together, and the Shapley values."""
    n = len(reft.sites)
    # The base, which has no effect, is among them because Shapley values start from it.
    sets = list(dict.fromkeys([frozenset[int](), *(frozenset([i]) for i in range(n)), frozenset(range(n))]))
    draws = [_values(runs, placebo.edits(runs.base.batch), sets) for placebo in turned_draws(reft, n_draws, seed=seed)]
    mean = {members: sum(draw[members] for draw in draws) / n_draws for members in sets}
    # With more than two sites, there are sets that were not run.
    shapley = _shapley(mean, n).float() if n <= 2 else None
    return torch.tensor([mean[frozenset([i])] for i in range(n)]), mean[frozenset(range(n))], shapley
