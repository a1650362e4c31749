"""Would training with another seed or rank find the same edit? Compares trained edits pair by pair.

There are four comparisons, the most meaningful first. As functions, on held-out activations of the base: relative error
and cosine of delta, and the KL divergence between the two edited models. In the data-weighted decomposition: angles
between the strongest write directions, plainly and in the output metric E[M]^(1/2), in which two directions that do the same
to the outputs coincide. In raw R: shown so that a reader sees why it is misleading.

The null consists of edits at the same sites, trained on shuffled answers from other initialisations (`null_edits`).
Unrelated edits still resemble each other, because later layers read a site in few directions. Random-direction controls
and random subspaces do not have this similarity, so no claim can rest on them. Under the null hypothesis that two edits
share nothing beyond it, they and the null edits are exchangeable. So p, the fraction of all pairs that are as close, is
exact.

Layers do not share a basis. Edits without a common site are compared only by the outputs of the edited models. Agreement
is not evidence of truth: two seeds can agree on a shortcut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.controls.turned import turned
from reftlens.analysis.decompose import decompose
from reftlens.analysis.engine.activations import edited_in
from reftlens.analysis.engine.output_metric import added, output_angles, pulls
from reftlens.analysis.overlap import directions, haar, overlap
from reftlens.bridge import each, side_for_ends
from reftlens.cone.answers import next_token_logprobs
from reftlens.cone.shared import sharing
from reftlens.data import Batch, Given, as_batches
from reftlens.edit.hooks import Edit
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
    n_probes: int = 8,
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
        n_probes: random probes of each prompt, for the angles in the output metric; 0 for none.
        seed: seed of the controls, probes and random subspaces.

    Raises:
        ValueError: If there are fewer than two edits, no batches, or null edits at other sites.
    """
    if len(refts) < 2:
        raise ValueError(f"agreement needs at least two edits, got {len(refts)}")
    batches = as_batches(bridge, prompts, padding_side=side_for_ends(bridge))
    nulls = list(null.values() if isinstance(null, Mapping) else null)
    seen = {name: _seen(bridge, reft, batches, at, n_probes=n_probes, seed=seed) for name, reft in refts.items()}
    # Controls are compared as functions only, and a decomposition would cost a pass each.
    controls = {
        name: _seen(bridge, turned(reft, seed=seed), batches, at, decomposed=False) for name, reft in refts.items()
    }
    null_seen = [_seen(bridge, reft, batches, at, n_probes=n_probes, seed=seed) for reft in nulls]
    among = list(combinations(null_seen, 2))
    ranked = _Ranked(rank=rank, n_null=n_null, seed=seed)
    found = [
        _pair((first, second), seen[first], seen[second], controls[second], null_seen, among, ranked)
        for first, second in combinations(refts, 2)
    ]
    return [
        replace(pair, turned_kl=_turned_kl(bridge, seen[pair.first], refts[pair.second], batches, seed))
        for pair in found
    ]


@final
@dataclass(frozen=True)
class _Ranked:
    """Number of directions to compare, and number of random subspaces."""

    rank: int | None
    n_null: int
    seed: int


@final
@dataclass(frozen=True, eq=False)
class _Seen:
    """The quantities of one edit that are compared, from one pass over the batches."""

    reft: Reft
    changes: tuple[Float[Tensor, "tokens _d_model"], ...]
    """Changes of each site at every compared token; NaN where the site does not edit."""
    said: Float[Tensor, "prompts d_vocab"]
    operators: list[Operator] | None
    push: tuple[Float[Tensor, "row d_model"], ...] = ()
    """Derivatives of the outputs by a push at each site; none without probes."""


@final
@dataclass(frozen=True)
class _Likeness:
    error: float
    cosine: float
    kl: float
    kl_both: float
    """KL(p || q) + KL(q || p), in nats."""


def _pair(
    names: tuple[str, str],
    a: _Seen,
    b: _Seen,
    control: _Seen,
    nulls: Sequence[_Seen],
    among: Sequence[tuple[_Seen, _Seen]],
    ranked: _Ranked,
) -> Agreement:
    here, like = _like(a, b)
    _, turned_like = _like(a, control)
    others = [*((one, n) for one in (a, b) for n in nulls), *among]
    operators = [op for one in (a, b, *nulls) for op in one.operators or ()]
    # The smallest one, because every edit must have that many directions.
    rank = ranked.rank or min((round(op.effective_rank) for op in operators), default=0)
    angles = _angles(a, b, here, rank=rank, n_null=ranked.n_null, seed=ranked.seed)
    found = [_like(one, other) for one, other in others]
    if any(len(places) < len(here) for places, _ in found):
        raise ValueError(f"the null edits for {names[0]} and {names[1]} must edit the same points: {_hooks(a, here)}")
    null_cosines = [likeness.cosine for _, likeness in found]
    null_kls = [likeness.kl_both for _, likeness in found]
    null_angles = [
        # One draw of chance, because only the angles of these pairs are used.
        _angles(one, other, places, rank=rank, n_null=1, seed=0)
        for (one, other), (places, _) in zip(others, found, strict=True)
    ]
    plain, in_outputs = [one.used for one in null_angles], [one.output for one in null_angles]
    return Agreement(
        first=names[0],
        second=names[1],
        sites=_hooks(a, here),
        relative_error=like.error,
        cosine=like.cosine,
        control_error=turned_like.error,
        control_cosine=turned_like.cosine,
        kl=like.kl,
        control_kl=turned_like.kl,
        rank=angles.rank,
        angle=angles.used,
        null_angle=angles.used_null,
        raw_angle=angles.raw,
        raw_null_angle=angles.raw_null,
        n_null_edits=len(nulls),
        null_cosine=_mean(null_cosines),
        null_kl=_mean([likeness.kl for _, likeness in found]),
        null_trained_angle=_mean(plain),
        # _p counts small distances, and a large cosine is a small one.
        p_cosine=_p([-value for value in null_cosines], -like.cosine),
        p_kl=_p(null_kls, like.kl_both),
        p_angle=_p(plain, angles.used),
        output_angle=angles.output,
        output_null_angle=angles.output_null,
        output_null_low=angles.output_low,
        null_low=angles.low,
        output_trained_angle=_mean(in_outputs),
        output_trained_low=min(in_outputs, default=float("nan")),
        null_trained_low=min(plain, default=float("nan")),
        p_output_angle=_p(in_outputs, angles.output),
    )


def _p(null: Sequence[float], value: float) -> float:
    """Returns the fraction of pairs, including this one, with a distance at most as large; NaN without null pairs or distance."""
    if not null or value != value:
        return float("nan")
    return (1 + sum(other <= value for other in null)) / (1 + len(null))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _hooks(a: _Seen, common: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    return tuple(a.reft.sites[i].hook_name for i, _ in common)


def _like(a: _Seen, b: _Seen) -> tuple[list[tuple[int, int]], _Likeness]:
    """Finds the sites where both edits act on a common token, and compares the edits there as functions."""
    here, pairs = [], []
    for i, j in _common(a.reft, b.reft):
        one, other = a.changes[i], b.changes[j]
        both = ~(one.isnan().any(-1) | other.isnan().any(-1))
        if bool(both.any()):
            here.append((i, j))
            pairs.append((one[both], other[both]))
    error, cosine = _compare(pairs)
    # Both ways, because in the pairs of the null neither edit is the first.
    kl, back = _kl(a.said, b.said), _kl(b.said, a.said)
    return here, _Likeness(error, cosine, kl, kl + back)


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


def _seen(
    bridge: TransformerBridge,
    reft: Reft,
    batches: Sequence[Batch],
    at: Positions | None,
    *,
    decomposed: bool = True,
    n_probes: int = 0,
    seed: int = 0,
) -> _Seen:
    """Computes changes on unedited activations of the base."""
    found: list[list[Tensor]] = [[] for _ in reft.sites]
    # A change may depend on tokens that are not compared, so it is computed from all tokens that its edit reads.
    for batch, seen in zip(batches, edited_in(bridge, reft.scaled(0.0), batches), strict=True):
        wanted = batch.prompt_mask if at is None else at.mask(batch.prompts)
        for edit, (_, h), parts in zip(reft.edits(batch), seen, found, strict=True):
            change = edit.change(h).double()
            every = change.new_full((*edit.mask.shape, change.shape[-1]), float("nan"))
            every[edit.mask] = change
            parts.append(every[wanted].cpu())
    return _Seen(
        reft,
        tuple(torch.cat(parts) for parts in found),
        _said(bridge, reft, batches),
        _operators(bridge, reft, batches, at) if decomposed else None,
        tuple(one.push for one in pulls(bridge, reft, batches, n_probes=n_probes, seed=seed)) if n_probes else (),
    )


def _turned_kl(bridge: TransformerBridge, seen: _Seen, other: Reft, batches: Sequence[Batch], seed: int) -> float:
    """Computes the KL from the first edit to itself plus the difference of the two, turned at equal norm at every token.

    NaN if the edits are not at the same sites and tokens.
    """
    common = _common(seen.reft, other)
    if len(common) < max(len(seen.reft), len(other)):
        return float("nan")
    generator = torch.Generator().manual_seed(seed)
    widths = [seen.reft[i][1].d_model for i, _ in common]
    turns = [torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q.float() for d in widths]
    said = []
    for batch in batches:
        first, second = seen.reft.edits(batch), other.edits(batch)
        if any(not first[i].mask.equal(second[j].mask) or first[i].intervention.across_tokens for i, j in common):
            return float("nan")
        moved = list(first)
        for (i, j), turn in zip(common, turns, strict=True):
            moved[i] = added(first[i], _difference(first[i], second[j], turn))
        said.append(next_token_logprobs(bridge, batch, moved))
    return _kl(seen.said, torch.cat(said))


def _difference(first: Edit, second: Edit, turn: Float[Tensor, "d_model d_model"]) -> Callable[[Tensor], Tensor]:
    """Returns what the second edit does beyond the first, rotated at random: lengths and inner products stay."""

    def extra(tokens: Tensor) -> Tensor:
        gap = second.scale * second.intervention.delta(tokens) - first.scale * first.intervention.delta(tokens)
        return gap @ turn.to(gap)

    return extra


def _compare(pairs: Sequence[tuple[Tensor, ...]]) -> tuple[float, float]:
    """Computes the relative error over all sites together, and the mean cosine over all their tokens."""
    if not pairs:
        return float("nan"), float("nan")
    gap = sum(float((a - b).square().sum()) for a, b in pairs)
    size = sum(float(a.square().sum() + b.square().sum()) / 2 for a, b in pairs)
    cosines = torch.cat([torch.cosine_similarity(a, b, dim=-1) for a, b in pairs])
    return (gap / size) ** 0.5 if size else float("nan"), float(cosines.mean())


def _said(bridge: TransformerBridge, reft: Reft, batches: Sequence[Batch]) -> Float[Tensor, "prompts d_vocab"]:
    return torch.cat(list(each(bridge, lambda batch: next_token_logprobs(bridge, batch, reft.edits(batch)), batches)))


def _kl(p: Float[Tensor, "prompts d_vocab"], q: Float[Tensor, "prompts d_vocab"]) -> float:
    return float((p.exp() * (p - q)).sum(dim=-1).mean())


def _operators(
    bridge: TransformerBridge, reft: Reft, batches: Sequence[Batch], at: Positions | None
) -> list[Operator] | None:
    try:
        return decompose(bridge, reft, batches, at=at)
    except NotAffineError:
        return None


@final
@dataclass(frozen=True)
class _Angles:
    rank: int = 0
    used: float = float("nan")
    used_null: float = float("nan")
    raw: float = float("nan")
    raw_null: float = float("nan")
    low: float = float("nan")
    output: float = float("nan")
    output_null: float = float("nan")
    output_low: float = float("nan")


def _angles(a: _Seen, b: _Seen, common: Sequence[tuple[int, int]], *, rank: int, n_null: int, seed: int) -> _Angles:
    """Computes mean angles over the common sites, of the decompositions and of the raw spans."""
    if a.operators is None or b.operators is None or not common:
        return _Angles()
    first, second = a.operators, b.operators
    spans_a, spans_b = ([intervention.basis().cpu() for _, intervention in one.reft] for one in (a, b))
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
        name: _mean([float(result.null_angles["haar"].mean()) for result in results]) for name, results in found.items()
    }
    made = _Angles(rank, angle["used"], chance["used"], angle["raw"], chance["raw"])
    return made if not a.push or not b.push else _in_outputs(made, a, b, common, pairs["used"], n_null, seed)


def _in_outputs(
    made: _Angles,
    a: _Seen,
    b: _Seen,
    common: Sequence[tuple[int, int]],
    pairs: Sequence[tuple[Tensor, Tensor]],
    n_null: int,
    seed: int,
) -> _Angles:
    """Adds the angles in the output metric, and bands of random pairs of subspaces in both metrics.

    The metric is that of both edited models together, because each edit moves the outputs to where it is used.
    """
    # As few rows with the same squares.
    rows = [torch.linalg.qr(torch.cat([a.push[i], b.push[j]]), mode="r").R for i, j in common]
    angles = [float(output_angles(*pair, push).mean()) for pair, push in zip(pairs, rows, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    plain, felt = torch.zeros(n_null), torch.zeros(n_null)
    for draw in range(n_null):
        for (first, second), push in zip(pairs, rows, strict=True):
            one, two = (torch.randn(span.shape, generator=generator, dtype=push.dtype) for span in (first, second))
            felt[draw] += output_angles(one, two, push).mean() / len(pairs)
            # The plain angle is that of a metric that weights all directions equally.
            plain[draw] += output_angles(one, two, torch.eye(push.shape[1], dtype=push.dtype)).mean() / len(pairs)
    return replace(
        made,
        low=float(plain.quantile(0.025)),
        output=_mean(angles),
        output_null=float(felt.mean()),
        output_low=float(felt.quantile(0.025)),
    )
