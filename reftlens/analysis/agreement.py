"""Would training with another seed or rank find the same edit? Compares trained edits pair by pair.

There are three comparisons, the most meaningful first. As functions, on held-out activations of the base: relative error
and cosine of delta, and the KL divergence between the two edited models. In the data-weighted decomposition: angles
between the strongest write directions. In raw R: shown so that a reader sees why it is misleading.

The null consists of edits at the same sites, trained on shuffled answers from other initialisations (`null_edits`).
Unrelated edits still resemble each other, because later layers read a site in few directions. Random-direction controls
and random subspaces do not have this similarity, so no claim can rest on them. Under the null hypothesis that two edits
share nothing beyond it, they and the null edits are exchangeable. So p, the fraction of all pairs that are as close, is
exact.

Layers do not share a basis. Edits without a common site are compared only by the outputs of the edited models. Agreement
is not evidence of truth: two seeds can agree on a shortcut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.controls.turned import turned
from reftlens.analysis.decompose import decompose
from reftlens.analysis.engine.activations import edited_activations
from reftlens.analysis.overlap import directions, haar, overlap
from reftlens.bridge import each, side_for_ends
from reftlens.cone.answers import next_token_logprobs
from reftlens.cone.shared import sharing
from reftlens.data import Batch, Given, as_batches
from reftlens.edit.reft import Reft
from reftlens.interventions import NotAffineError
from reftlens.positions import Positions
from reftlens.results import Agreement, Operator


@sharing
@torch.no_grad()
def agreement(
    bridge: TransformerBridge,
    refts: Mapping[str, Reft],
    prompts: Given,
    *,
    null: Mapping[str, Reft] | Sequence[Reft] = (),
    at: Positions | None = None,
    rank: int | None = None,
    n_null: int = 200,
    seed: int = 0,
) -> list[Agreement]:
    """Compares every pair of edits of one model.

    Args:
        bridge: the base.
        refts: name -> trained edit; at least two.
        prompts: held-out texts, conversations, pairs or batches.
        null: edits of the same layout trained on shuffled answers from other initialisations, from `null_edits`. At least
            five are needed to reach p = .05. Without them no claim is made.
        at: compare changes and directions only at these edited tokens, such as `Last(1)`, because later layers do not
            read much of what an edit changes.
        rank: number of directions compared by angle; by default the smallest rounded effective rank among all edits,
            including null edits.
        n_null: random subspaces for the angles expected by chance between untrained subspaces.
        seed: seed of the controls and random subspaces.

    Raises:
        ValueError: If there are fewer than two edits, no batches, or null edits at other sites.
    """
    if len(refts) < 2:
        raise ValueError(f"agreement needs at least two edits, got {len(refts)}")
    batches = as_batches(bridge, prompts, padding_side=side_for_ends(bridge))
    names, nulls = list(refts), list(null.values() if isinstance(null, Mapping) else null)
    edits = [*refts.values(), *nulls]
    controls = [turned(reft, seed=seed) for reft in refts.values()]
    pairs = list(combinations(range(len(names)), 2))
    # An edit beside the control of another one; controls come last.
    beside = [(first, len(edits) + second) for first, second in pairs]
    couples = [*combinations(range(len(edits)), 2), *beside]
    compared = _Compared(
        edits=edits,
        n_named=len(names),
        likeness=dict(zip(couples, _likeness(bridge, [*edits, *controls], couples, batches, at), strict=True)),
        operators=[_operators(bridge, reft, batches, at) for reft in edits],
        rank=rank,
        n_null=n_null,
        seed=seed,
    )
    return [compared.pair((names[first], names[second]), first, second) for first, second in pairs]


@final
@dataclass(frozen=True, eq=False)
class _Sums:
    """What is summed over tokens or prompts of two edits; with it, no change and no log-probability is kept."""

    sites: Float[Tensor, "common 4"]
    """For each common site: compared tokens, |a - b|^2, (|a|^2 + |b|^2) / 2, and cosines."""
    kl: Float[Tensor, "2"]
    """KL(a || b) and KL(b || a), in nats."""

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(self.sites + other.sites, self.kl + other.kl)


@final
@dataclass(frozen=True)
class _Likeness:
    """How alike two edits are as functions."""

    here: list[tuple[int, int]]
    """Their sites at the same point with a common token."""
    error: float
    cosine: float
    kl: float
    kl_both: float
    """KL(p || q) + KL(q || p), in nats."""


def _likeness(
    bridge: TransformerBridge,
    edits: Sequence[Reft],
    couples: Sequence[tuple[int, int]],
    batches: Sequence[Batch],
    at: Positions | None,
) -> list[_Likeness]:
    """Compares pairs of edits as functions, in one pass over the batches."""
    common = [_common(edits[first], edits[second]) for first, second in couples]

    def sums(batch: Batch) -> list[_Sums]:
        changes = [_changes(bridge, reft, batch, at) for reft in edits]
        said = [next_token_logprobs(bridge, batch, reft.edits(batch)) for reft in edits]
        likely = [logprobs.exp() for logprobs in said]
        return [
            _Sums(
                torch.stack([_at_a_site(changes[first][i], changes[second][j]) for i, j in sites])
                if sites
                else torch.zeros(0, 4, dtype=torch.float64),
                torch.stack(
                    [(likely[p] * (said[p] - said[q])).sum().double() for p, q in ((first, second), (second, first))]
                ),
            )
            for (first, second), sites in zip(couples, common, strict=True)
        ]

    totals: list[_Sums] | None = None
    for found in each(bridge, sums, batches):
        totals = found if totals is None else [total + part for total, part in zip(totals, found, strict=True)]
    assert totals is not None, "there is at least one batch"
    n_prompts = sum(map(len, batches))
    return [_of(total, sites, n_prompts) for total, sites in zip(totals, common, strict=True)]


def _of(sums: _Sums, common: Sequence[tuple[int, int]], n_prompts: int) -> _Likeness:
    n, gap, size, cosine = sums.sites.sum(dim=0).tolist()
    kl, back = (sums.kl / n_prompts).tolist()
    return _Likeness(
        here=[pair for pair, (tokens, *_) in zip(common, sums.sites.tolist(), strict=True) if tokens],
        error=(gap / size) ** 0.5 if size else float("nan"),
        cosine=cosine / n if n else float("nan"),
        kl=kl,
        kl_both=kl + back,
    )


def _at_a_site(one: Float[Tensor, "token width"], other: Float[Tensor, "token width"]) -> Float[Tensor, "4"]:
    """Sums over the tokens where both edit."""
    both = ~(one.isnan().any(-1) | other.isnan().any(-1))
    one, other = one[both], other[both]
    size = (one.square().sum() + other.square().sum()) / 2
    cosines = torch.cosine_similarity(one, other, dim=-1)
    return torch.stack([both.sum().double(), (one - other).square().sum(), size, cosines.sum()])


def _changes(
    bridge: TransformerBridge, reft: Reft, batch: Batch, at: Positions | None
) -> list[Float[Tensor, "token _width"]]:
    """Returns the changes of each site on unedited activations, at every compared token; NaN where the site does not edit."""
    wanted = batch.prompt_mask if at is None else at.mask(batch.prompts)
    found = []
    # A change may depend on tokens that are not compared, so it is computed from all tokens that its edit reads.
    seen = edited_activations(bridge, reft.scaled(0.0), batch)
    for edit, (_, h) in zip(reft.edits(batch), seen, strict=True):
        change = edit.change(h).double()
        every = change.new_full((*edit.mask.shape, change.shape[-1]), float("nan"))
        every[edit.mask] = change
        found.append(every[wanted].cpu())
    return found


def _common(a: Reft, b: Reft) -> list[tuple[int, int]]:
    """Pairs the indices of sites at the same point. Each site is used once."""
    free = list(range(len(b)))
    pairs = []
    for i, site in enumerate(a.sites):
        j = next((j for j in free if (b.sites[j].hook_name, b.sites[j].head) == (site.hook_name, site.head)), None)
        if j is not None:
            free.remove(j)
            pairs.append((i, j))
    return pairs


@final
@dataclass(frozen=True, eq=False)
class _Compared:
    """All edits, compared as functions, and their decompositions."""

    edits: Sequence[Reft]
    n_named: int
    """The edits after these are null edits."""
    likeness: Mapping[tuple[int, int], _Likeness]
    operators: Sequence[list[Operator] | None]
    rank: int | None
    n_null: int
    seed: int

    def pair(self, names: tuple[str, str], a: int, b: int) -> Agreement:
        """Puts the comparisons of two edits beside those with and among the null edits."""
        here, control = self.likeness[a, b], self.likeness[a, len(self.edits) + b]
        nulls = range(self.n_named, len(self.edits))
        others = [*((one, n) for one in (a, b) for n in nulls), *combinations(nulls, 2)]
        operators = [op for one in (a, b, *nulls) for op in self.operators[one] or ()]
        rank = self.rank or min((round(op.effective_rank) for op in operators), default=0)
        angles = self._angles(a, b, here.here, rank=rank, n_null=self.n_null, seed=self.seed)
        found = [self.likeness[other] for other in others]
        sites = tuple(self.edits[a].sites[i].hook_name for i, _ in here.here)
        if any(len(like.here) < len(here.here) for like in found):
            raise ValueError(f"the null edits for {names[0]} and {names[1]} must edit the same points: {sites}")
        null_angles = [
            self._angles(*other, like.here, rank=rank, n_null=1, seed=0).used
            for other, like in zip(others, found, strict=True)
        ]
        return Agreement(
            first=names[0],
            second=names[1],
            sites=sites,
            relative_error=here.error,
            cosine=here.cosine,
            control_error=control.error,
            control_cosine=control.cosine,
            kl=here.kl,
            control_kl=control.kl,
            rank=angles.rank,
            angle=angles.used,
            null_angle=angles.used_null,
            raw_angle=angles.raw,
            raw_null_angle=angles.raw_null,
            n_null_edits=len(nulls),
            null_cosine=_mean([like.cosine for like in found]),
            null_kl=_mean([like.kl for like in found]),
            null_trained_angle=_mean(null_angles),
            p_cosine=_p([-like.cosine for like in found], -here.cosine),
            p_kl=_p([like.kl_both for like in found], here.kl_both),
            p_angle=_p(null_angles, angles.used),
        )

    def _angles(
        self, a: int, b: int, common: Sequence[tuple[int, int]], *, rank: int, n_null: int, seed: int
    ) -> _Angles:
        """Computes mean angles over the common sites, of the decompositions and of the raw spans."""
        first, second = self.operators[a], self.operators[b]
        if first is None or second is None or not common:
            return _Angles()
        spans_a, spans_b = ([intervention.basis().cpu() for _, intervention in self.edits[one]] for one in (a, b))
        pairs = {
            "used": [(directions(first[i], rank), directions(second[j], rank)) for i, j in common],
            "raw": [(spans_a[i], spans_b[j]) for i, j in common],
        }
        found = {
            name: [overlap(*pair, nulls={"haar": haar(pair[0].shape[1])}, n_null=n_null, seed=seed) for pair in spans]
            for name, spans in pairs.items()
        }
        angle = {name: _mean([float(result.angles.mean()) for result in results]) for name, results in found.items()}
        chance = {
            name: _mean([float(result.null_angles["haar"].mean()) for result in results])
            for name, results in found.items()
        }
        return _Angles(rank, angle["used"], chance["used"], angle["raw"], chance["raw"])


@final
@dataclass(frozen=True)
class _Angles:
    rank: int = 0
    used: float = float("nan")
    used_null: float = float("nan")
    raw: float = float("nan")
    raw_null: float = float("nan")


def _p(null: Sequence[float], value: float) -> float:
    """Returns the fraction of pairs, including this one, with a distance at most as large; NaN without null pairs or distance."""
    if not null or value != value:
        return float("nan")
    return (1 + sum(other <= value for other in null)) / (1 + len(null))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _operators(
    bridge: TransformerBridge, reft: Reft, batches: Sequence[Batch], at: Positions | None
) -> list[Operator] | None:
    try:
        return decompose(bridge, reft, batches, at=at)
    except NotAffineError:
        return None
