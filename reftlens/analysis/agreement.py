"""Would training with another seed or rank find the same edit? Compares trained edits pair by pair.

There are four comparisons, the most meaningful first. As functions, on held-out activations of the
base: relative error and cosine of delta, and the KL divergence between the two edited models. In
the data-weighted decomposition: angles between the strongest write directions, plainly and in the
output metric E[M]^(1/2), in which two directions that do the same to the outputs coincide. In raw
R: shown so that a reader sees why it is misleading.

The null consists of edits at the same sites, trained on shuffled answers from other initialisations
(`null_edits`). Unrelated edits still resemble each other, because later layers read a site in few
directions. Random-direction controls and random subspaces do not have this similarity, so no claim
can rest on them. Under the null hypothesis that two edits share nothing beyond it, they and the
null edits are exchangeable. So p, the fraction of all pairs that are as close, is exact.

Layers do not share a basis. Edits without a common site are compared only by the outputs of the
edited models. Agreement is not evidence of truth: two seeds can agree on a shortcut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations, product
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.controls.turned import turned
from reftlens.analysis.decompose import decompose
from reftlens.analysis.engine.activations import edited_activations
from reftlens.analysis.engine.output_metric import added, output_angles, push_roots
from reftlens.analysis.overlap import directions, haar, overlap
from reftlens.bridge import each, side_for_ends
from reftlens.cone.answers import next_token_logprobs
from reftlens.cone.shared import sharing
from reftlens.data import Batch, Given, as_batches, rows_in_groups
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
    memory_bytes: int = 1 << 30,
    seed: int = 0,
) -> list[Agreement]:
    """Compares every pair of edits of one model.

    Args:
        bridge: the base.
        refts: name -> trained edit; at least two.
        prompts: held-out texts, conversations, pairs or batches.
        null: edits of the same layout trained on shuffled answers from other initialisations, from
            `null_edits`. At least five are needed to reach p = .05. Without them no claim is made.
        at: compare changes and directions only at these edited tokens, such as `Last(1)`, because
            later layers do not read much of what an edit changes.
        rank: number of directions compared by angle; by default the smallest rounded effective rank
            among all edits, including null edits.
        n_null: random subspaces for the angles expected by chance between untrained subspaces.
        n_probes: random probes of each prompt, for the angles in the output metric; 0 for none.
        memory_bytes: approximate limit for the changes and log-probabilities of all edits. Prompts
            beyond it go through in groups.
        seed: seed of the controls, probes and random subspaces.

    Raises:
        ValueError: If there are fewer than two edits, no batches, or null edits at other sites.
    """
    if len(refts) < 2:
        raise ValueError(f"agreement needs at least two edits, got {len(refts)}")
    batches = as_batches(bridge, prompts, padding_side=side_for_ends(bridge))
    nulls = list(null.values() if isinstance(null, Mapping) else null)
    # Controls are compared as functions only, and a decomposition would cost a pass each.
    everyone = [*refts.values(), *(turned(reft, seed=seed) for reft in refts.values()), *nulls]
    likenesses, turned_kls = _compared(bridge, everyone, len(refts), batches, at, memory_bytes=memory_bytes, seed=seed)
    described = {
        place: _described(bridge, reft, batches, at, n_probes=n_probes, seed=seed)
        for place, reft in enumerate(everyone)
        if not len(refts) <= place < 2 * len(refts)
    }
    ranked = _Ranked(rank=rank, n_null=n_null, seed=seed)
    return [
        replace(
            _pair((list(refts)[i], list(refts)[j]), (i, j), len(refts), described, likenesses, ranked),
            turned_kl=turned_kls[i, j],
        )
        for i, j in combinations(range(len(refts)), 2)
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
    """What one edit does to a group of prompts."""

    changes: tuple[Float[Tensor, "tokens _d_model"], ...]
    """Changes of each site at every compared token; NaN where the site does not edit."""
    said: Float[Tensor, "prompts d_vocab"]


@final
@dataclass(frozen=True, eq=False)
class _Described:
    """The directions of one edit."""

    reft: Reft
    operators: list[Operator] | None
    push: tuple[Float[Tensor, "row d_model"], ...] = ()
    """Derivatives of the outputs by a push at each site; none without probes."""


@final
@dataclass(frozen=True)
class _Likeness:
    places: list[tuple[int, int]]
    """Indices of the sites of both edits that act on a common token."""
    error: float
    cosine: float
    kl: float
    kl_both: float
    """KL(p || q) + KL(q || p), in nats."""


_Places = tuple[int, int]
"""Of two edits among all."""


def _pair(
    names: tuple[str, str],
    places: _Places,
    n: int,
    described: Mapping[int, _Described],
    likenesses: Mapping[_Places, _Likeness],
    ranked: _Ranked,
) -> Agreement:
    first, second = places
    a, b = described[first], described[second]
    like, turned_like = likenesses[places], likenesses[first, n + second]
    here = like.places
    nulls = [place for place in described if place >= n]
    others = [*((one, null) for one in places for null in nulls), *combinations(nulls, 2)]
    operators = [op for place in (*places, *nulls) for op in described[place].operators or ()]
    # The smallest one, because every edit must have that many directions.
    rank = ranked.rank or min((round(op.effective_rank) for op in operators), default=0)
    angles = _angles(a, b, here, rank=rank, n_null=ranked.n_null, seed=ranked.seed)
    found = [likenesses[pair] for pair in others]
    if any(len(likeness.places) < len(here) for likeness in found):
        raise ValueError(f"the null edits for {names[0]} and {names[1]} must edit the same points: {_hooks(a, here)}")
    null_cosines = [likeness.cosine for likeness in found]
    null_kls = [likeness.kl_both for likeness in found]
    null_angles = [
        # One draw of chance, because only the angles of these pairs are used.
        _angles(described[one], described[other], likeness.places, rank=rank, n_null=1, seed=0)
        for (one, other), likeness in zip(others, found, strict=True)
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
        null_kl=_mean([likeness.kl for likeness in found]),
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


def _hooks(a: _Described, common: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    return tuple(a.reft.sites[i].hook_name for i, _ in common)


@final
@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over prompts, from which a likeness is computed. They add up over groups of prompts."""

    acting: Float[Tensor, " common"]
    """Number of tokens at which both edits act, for each pair of sites at one point."""
    gap: Float[Tensor, ""]
    """Squared difference of the changes at these tokens."""
    size: Float[Tensor, ""]
    """Mean of both changes' squares."""
    cosine: Float[Tensor, ""]
    kl: Float[Tensor, "2"]
    """Both ways, because in the pairs of the null neither edit is the first."""

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))

    def likeness(self, common: Sequence[tuple[int, int]], n_prompts: int) -> _Likeness:
        acting, nan = float(self.acting.sum()), float("nan")
        kl, back = (self.kl / n_prompts).tolist()
        return _Likeness(
            [pair for pair, n in zip(common, self.acting.tolist(), strict=True) if n],
            # Over all sites together.
            float(self.gap / self.size) ** 0.5 if float(self.size) else nan,
            float(self.cosine) / acting if acting else nan,
            kl,
            kl + back,
        )


def _compared(
    bridge: TransformerBridge,
    everyone: Sequence[Reft],
    n: int,
    batches: Sequence[Batch],
    at: Positions | None,
    *,
    memory_bytes: int,
    seed: int,
) -> tuple[dict[_Places, _Likeness], dict[_Places, float]]:
    """Compares edits as functions, one group of prompts after another.

    Args:
        bridge: the base.
        everyone: n edits, their n controls, and null edits.
        n: number of the first.
        batches: the prompts.
        at: the tokens to compare.
        memory_bytes: limit of what is kept of a group.
        seed: seed of the turns.

    Returns:
        The likeness of pairs of edits, by place; and for pairs of the first n the KL of
        `_turned_kl`.
    """
    nulls = range(2 * n, len(everyone))
    real = list(combinations(range(n), 2))
    pairs = [*real, *((i, n + j) for i, j in real), *product(range(n), nulls), *combinations(nulls, 2)]
    common = {(i, j): _common(everyone[i], everyone[j]) for i, j in pairs}
    turns = {(i, j): _turns(everyone[i], everyone[j], seed) for i, j in real}

    def measure(batch: Batch) -> tuple[list[_Sums], list[float]]:
        seen = [_seen(bridge, reft, batch, at) for reft in everyone]
        return (
            [_sums(seen[i], seen[j], common[i, j]) for i, j in pairs],
            [_turned_kl(bridge, seen[i].said, (everyone[i], everyone[j]), batch, turns[i, j]) for i, j in real],
        )

    def bytes_of(batch: Batch) -> int:
        """What is kept of one prompt: log-probabilities of all edits, three tables of a comparison, and changes."""
        widths = sum(intervention.d_model for reft in everyone for _, intervention in reft)
        return 4 * (len(everyone) + 3) * bridge.cfg.d_vocab + 8 * batch.tokens.shape[1] * widths

    groups = [group for batch in batches for group in _groups(batch, max(1, memory_bytes // bytes_of(batch)), everyone)]
    sums: list[_Sums] = []
    kls = [0.0] * len(real)
    for found, turned_kls in each(bridge, measure, groups):
        sums = [old + new for old, new in zip(sums, found, strict=True)] if sums else found
        kls = [old + new for old, new in zip(kls, turned_kls, strict=True)]
    n_prompts = sum(map(len, batches))
    likenesses = {pair: one.likeness(common[pair], n_prompts) for pair, one in zip(pairs, sums, strict=True)}
    return likenesses, {pair: kl / n_prompts for pair, kl in zip(real, kls, strict=True)}


def _groups(batch: Batch, n: int, everyone: Sequence[Reft]) -> list[Batch]:
    groups = rows_in_groups(batch, n)
    try:
        for group in groups:
            for reft in everyone:
                reft.edits(group)
    except ValueError:
        # Not every prompt has the tokens of these edits, and some group has none of them.
        return [batch]
    return groups


def _sums(a: _Seen, b: _Seen, common: Sequence[tuple[int, int]]) -> _Sums:
    acting = torch.zeros(len(common), dtype=torch.float64)
    gap, size, cosine = torch.zeros(3, dtype=torch.float64).unbind()
    for place, (i, j) in enumerate(common):
        one, other = a.changes[i], b.changes[j]
        both = ~(one.isnan().any(-1) | other.isnan().any(-1))
        one, other = one[both], other[both]
        acting[place] = len(one)
        gap = gap + (one - other).square().sum()
        size = size + (one.square().sum() + other.square().sum()) / 2
        cosine = cosine + torch.cosine_similarity(one, other, dim=-1).sum()
    return _Sums(acting, gap, size, cosine, torch.stack([_kl(a.said, b.said), _kl(b.said, a.said)]))


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


def _seen(bridge: TransformerBridge, reft: Reft, batch: Batch, at: Positions | None) -> _Seen:
    """Computes changes on unedited activations of the base, and what the edited model says."""
    wanted = batch.prompt_mask if at is None else at.mask(batch.prompts)
    changes = []
    # A change may depend on tokens that are not compared, so it is computed from all tokens that
    # its edit reads.
    for edit, (_, h) in zip(reft.edits(batch), edited_activations(bridge, reft.scaled(0.0), batch), strict=True):
        change = edit.change(h).double()
        every = change.new_full((*edit.mask.shape, change.shape[-1]), float("nan"))
        every[edit.mask] = change
        changes.append(every[wanted].cpu())
    return _Seen(tuple(changes), next_token_logprobs(bridge, batch, reft.edits(batch)))


def _described(
    bridge: TransformerBridge,
    reft: Reft,
    batches: Sequence[Batch],
    at: Positions | None,
    *,
    n_probes: int,
    seed: int,
) -> _Described:
    return _Described(
        reft,
        _operators(bridge, reft, batches, at),
        tuple(push_roots(bridge, reft, batches, n_probes=n_probes, seed=seed)) if n_probes else (),
    )


def _turns(a: Reft, b: Reft, seed: int) -> list[Float[Tensor, "_d_model _d_model"]] | None:
    """Returns a random turn for each common site of two edits; None if one of them has further sites."""
    common = _common(a, b)
    if len(common) < max(len(a), len(b)):
        return None
    generator = torch.Generator().manual_seed(seed)
    widths = [a[i][1].d_model for i, _ in common]
    return [torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q.float() for d in widths]


def _turned_kl(
    bridge: TransformerBridge,
    said: Float[Tensor, "prompts d_vocab"],
    pair: tuple[Reft, Reft],
    batch: Batch,
    turns: Sequence[Float[Tensor, "_d_model _d_model"]] | None,
) -> float:
    """Sums the KL from the first edit to itself plus the difference of the two, turned at equal norm at every token.

    NaN if the edits are not at the same sites and tokens.
    """
    if turns is None:
        return float("nan")
    first, second = (reft.edits(batch) for reft in pair)
    common = _common(*pair)
    if any(not first[i].mask.equal(second[j].mask) or first[i].intervention.across_tokens for i, j in common):
        return float("nan")
    moved = list(first)
    for (i, j), turn in zip(common, turns, strict=True):
        moved[i] = added(first[i], _difference(first[i], second[j], turn))
    return float(_kl(said, next_token_logprobs(bridge, batch, moved)))


def _difference(first: Edit, second: Edit, turn: Float[Tensor, "d_model d_model"]) -> Callable[[Tensor], Tensor]:
    """Returns what the second edit does beyond the first, rotated at random: lengths and inner products stay."""

    def extra(tokens: Tensor) -> Tensor:
        gap = second.scale * second.intervention.delta(tokens) - first.scale * first.intervention.delta(tokens)
        return gap @ turn.to(gap)

    return extra


def _kl(p: Float[Tensor, "prompts d_vocab"], q: Float[Tensor, "prompts d_vocab"]) -> Float[Tensor, ""]:
    """Sums the KL divergence over prompts."""
    return (p.exp() * (p - q)).sum(dim=-1).double().sum()


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


def _angles(
    a: _Described, b: _Described, common: Sequence[tuple[int, int]], *, rank: int, n_null: int, seed: int
) -> _Angles:
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
    a: _Described,
    b: _Described,
    common: Sequence[tuple[int, int]],
    pairs: Sequence[tuple[Tensor, Tensor]],
    n_null: int,
    seed: int,
) -> _Angles:
    """Adds the angles in the output metric, and bands of random pairs of subspaces in both metrics.

    The metric is that of both edited models together, because each edit moves the outputs to where
    it is used.
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
