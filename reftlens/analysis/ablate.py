"""Which sites does a trained edit need, and which would do alone? The edit with every set of its sites.

With v(S) the mean effect of the sites in S by themselves: alone v({i}); left out v(N) - v(N - i); and the Shapley
value, what site i adds to those before it, mean over all orders of adding them (Shapley 1953). Shapley values sum to
v(N), exactly when all 2^n sets are run and also when orders are sampled, since what is added along each order sums to
v(N) (Castro et al. 2009, doi:10.1016/j.cor.2008.04.004).

A site with a small value is not proved idle: another may stand in for it, which the interactions show. The control is
each site alone with its changes turned to random directions.
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

from reftlens.analysis.controls.turned import turned
from reftlens.analysis.engine.coalitions import Coalitions, whole_sites
from reftlens.analysis.metrics import Metric
from reftlens.data import Given, as_batch
from reftlens.edit.hooks import Edit
from reftlens.edit.reft import Reft
from reftlens.results import Ablation

Set = frozenset[int]
"""Sites that stay, by their place in the edit."""

_EXACT = 12
"""Sites up to which all sets are run."""


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
    """The effect of an edit divided up among its sites.

    Args:
        bridge: the base; causal.
        reft: the edit.
        prompts: texts, conversations or one batch, without completions.
        metric: of the logits after each prompt.
        n_orders: sampled orders, for an edit of more than 12 sites.
        n_control: random turns that the control is averaged over.
        seed: draws orders and turns.
        memory_bytes: about what the activations of one run may take.
        progress: show a progress bar.

    Raises:
        ValueError: if there are fewer than two orders or no turns to draw.
    """
    if n_orders < 2 or n_control < 1:
        raise ValueError(f"n_orders must be at least 2 and n_control at least 1, got {n_orders} and {n_control}")
    batch = as_batch(bridge, prompts)
    runs = Coalitions(bridge, batch, metric, memory_bytes=memory_bytes)
    edits = reft.edits(batch)
    n, bar = len(edits), "ablation" if progress else ""
    exact = n <= _EXACT
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
        shapley = low = high = _shapley(value, n)
    else:
        added = torch.tensor([_added(value, order) for order in orders], dtype=torch.float64)
        shapley, (low, high) = added.mean(0), bootstrap_ci(added, dim=0, generator=generator)
    return Ablation(
        whole=value[everything],
        sites=reft.site_names,
        alone=torch.tensor([value[frozenset([i])] for i in range(n)]),
        left_out=torch.tensor([value[everything] - value[everything - {i}] for i in range(n)]),
        shapley=shapley.float(),
        low=low.float(),
        high=high.float(),
        interaction=_interactions(value, n),
        control=_control(runs, reft, n_control, seed),
        exact=exact,
        n_examples=len(batch),
    )


def _values(runs: Coalitions, edits: Sequence[Edit], sets: Sequence[Set], *, progress: str = "") -> dict[Set, float]:
    """v of each set, mean over examples."""
    chosen = torch.zeros(len(sets), len(edits), dtype=torch.bool)
    for row, members in enumerate(sets):
        chosen[row, list(members)] = True
    effects = runs.effects(edits, whole_sites(edits), chosen, progress=progress).mean(1)
    return dict(zip(sets, effects.tolist(), strict=True))


def _every_set(n: int) -> Iterator[Set]:
    return (frozenset(members) for size in range(n + 1) for members in combinations(range(n), size))


def _pairs_left_out(n: int) -> Iterator[Set]:
    """All sites, all but one, all but two; and each alone."""
    everything = frozenset(range(n))
    yield from (everything - set(left) for size in range(3) for left in combinations(range(n), size))
    yield from (frozenset([i]) for i in range(n))


def _along(order: Sequence[int]) -> Iterator[Set]:
    """The sets that adding sites in an order goes through."""
    return (frozenset(order[:size]) for size in range(len(order) + 1))


def _added(value: Mapping[Set, float], order: Sequence[int]) -> list[float]:
    """What each site adds along an order, by site."""
    steps = [value[members] for members in _along(order)]
    added = {site: after - before for site, before, after in zip(order, steps[:-1], steps[1:], strict=True)}
    return [added[site] for site in range(len(order))]


def _shapley(value: Mapping[Set, float], n: int) -> Float[Tensor, " site"]:
    """sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S))."""
    out = torch.zeros(n, dtype=torch.float64)
    for members in value:
        weight = 1 / (n * math.comb(n - 1, len(members))) if len(members) < n else 0.0
        for site in set(range(n)) - members:
            out[site] += weight * (value[members | {site}] - value[members])
    return out


def _interactions(value: Mapping[Set, float], n: int) -> Float[Tensor, "site site"]:
    everything = frozenset(range(n))
    out = torch.full((n, n), torch.nan)
    for i, j in combinations(range(n), 2):
        left_out = value[everything - {i}] + value[everything - {j}] - value[everything - {i, j}]
        out[i, j] = out[j, i] = value[everything] - left_out
    return out


def _control(runs: Coalitions, reft: Reft, n_draws: int, seed: int) -> Float[Tensor, " site"]:
    """Each site alone, turned; mean over draws."""
    draws = []
    for draw in range(n_draws):
        edits = turned(reft, seed=seed + draw).edits(runs.base.batch)
        draws.append(list(_values(runs, edits, [frozenset([i]) for i in range(len(edits))]).values()))
    return torch.tensor(draws).mean(0)
