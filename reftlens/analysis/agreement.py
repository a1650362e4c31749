"""Would another seed, or another rank, have found the same edit? Trained edits compared pair by pair.

Three answers, in the order of what they are worth: as functions, on held-out activations of the base (relative error
and cosine of delta; KL between the two edited models); in the data-weighted decomposition (angles of the strongest
write directions); and in raw R, which is shown so that a reader sees why it misleads.

Layers do not share a basis: edits without a common site are compared by what the models then say, and by nothing else.
Agreement is not evidence of truth: two seeds can agree on a shortcut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.controls.turned import turned
from reftlens.analysis.decompose import decompose
from reftlens.analysis.engine.activations import edited_activations
from reftlens.analysis.outcome import next_token_logprobs
from reftlens.analysis.overlap import directions, overlap
from reftlens.data import Batch
from reftlens.edit.reft import Reft
from reftlens.interventions import NotAffineError
from reftlens.positions import Positions
from reftlens.results import Agreement, Operator

_Deltas = tuple[Float[Tensor, "tokens d_model"], ...]
"""Changes by the first edit, the second, and the second turned, at the tokens that both act on."""


@torch.no_grad()
def agreement(
    bridge: TransformerBridge,
    refts: Mapping[str, Reft],
    batches: Sequence[Batch],
    *,
    at: Positions | None = None,
    rank: int | None = None,
    n_null: int = 200,
    seed: int = 0,
) -> list[Agreement]:
    """Compares every pair of edits of one model.

    Args:
        bridge: the base.
        refts: name -> trained edit; at least two.
        batches: held-out inputs.
        at: compare changes and directions at these of the edited tokens alone, such as `Last(1)`; an edit changes much
            that nothing reads.
        rank: directions compared by angle; if not given, the rounded effective rank of the edit that uses fewer.
        n_null: random subspaces for the null angles.
        seed: draws controls and nulls.

    Raises:
        ValueError: for fewer than two edits, or no batches.
    """
    if len(refts) < 2 or not batches:
        raise ValueError(f"wanted two edits and one batch at least, got {len(refts)} and {len(batches)}")
    controls = {name: turned(reft, seed=seed) for name, reft in refts.items()}
    said = {name: _said(bridge, reft, batches) for name, reft in refts.items()}
    said_controls = {name: _said(bridge, reft, batches) for name, reft in controls.items()}
    operators = {name: _operators(bridge, reft, batches, at) for name, reft in refts.items()}
    pairs = []
    for first, second in combinations(refts, 2):
        a, b = refts[first], refts[second]
        common = _common(a, b)
        deltas = list(_deltas(bridge, (a, b, controls[second]), batches, common, at))
        shared = [index for index, (one, _, _) in enumerate(deltas) if len(one)]
        error, cosine = _compare([deltas[i][:2] for i in shared])
        control_error, control_cosine = _compare([(deltas[i][0], deltas[i][2]) for i in shared])
        here = [common[i] for i in shared]
        angles = _angles(a, b, operators[first], operators[second], here, rank=rank, n_null=n_null, seed=seed)
        pairs.append(
            Agreement(
                first=first,
                second=second,
                sites=tuple(a.sites[i].hook_name for i, _ in here),
                relative_error=error,
                cosine=cosine,
                control_error=control_error,
                control_cosine=control_cosine,
                kl=_kl(said[first], said[second]),
                control_kl=_kl(said[first], said_controls[second]),
                rank=angles.rank,
                angle=angles.used,
                null_angle=angles.used_null,
                raw_angle=angles.raw,
                raw_null_angle=angles.raw_null,
            )
        )
    return pairs


def _common(a: Reft, b: Reft) -> list[tuple[int, int]]:
    """Pairs of indices of sites at the same point; a site is used once."""
    free = list(range(len(b)))
    pairs = []
    for i, site in enumerate(a.sites):
        j = next((j for j in free if (b.sites[j].hook_name, b.sites[j].head) == (site.hook_name, site.head)), None)
        if j is not None:
            free.remove(j)
            pairs.append((i, j))
    return pairs


def _deltas(
    bridge: TransformerBridge,
    refts: tuple[Reft, ...],
    batches: Sequence[Batch],
    common: Sequence[tuple[int, int]],
    at: Positions | None,
) -> Iterable[_Deltas]:
    """For each common site the changes at activations of the base, which no edit has touched."""
    found: list[list[_Deltas]] = [[] for _ in common]
    for batch in batches:
        edits = [reft.edits(batch) for reft in refts]
        wanted = batch.prompt_mask if at is None else at.mask(batch.prompts)
        # A change is computed from all that its own edit reads, also where only some of its tokens are compared.
        seen = [[h for _, h in edited_activations(bridge, reft.scaled(0.0), batch)] for reft in refts[:2]]
        for (i, j), parts in zip(common, found, strict=True):
            both = edits[0][i].mask & edits[1][j].mask & wanted
            three = (edits[0][i], seen[0][i]), (edits[1][j], seen[1][j]), (edits[2][j], seen[1][j])
            parts.append(tuple(edit.change(h)[both[edit.mask]].double() for edit, h in three))
    return [tuple(torch.cat(column) for column in zip(*parts, strict=True)) for parts in found]


def _compare(pairs: Sequence[tuple[Tensor, ...]]) -> tuple[float, float]:
    """Relative error over all sites together, and mean cosine over all their tokens."""
    if not pairs:
        return float("nan"), float("nan")
    gap = sum(float((a - b).square().sum()) for a, b in pairs)
    size = sum(float(a.square().sum() + b.square().sum()) / 2 for a, b in pairs)
    cosines = torch.cat([torch.cosine_similarity(a, b, dim=-1) for a, b in pairs])
    return (gap / size) ** 0.5 if size else float("nan"), float(cosines.mean())


def _said(bridge: TransformerBridge, reft: Reft, batches: Sequence[Batch]) -> Float[Tensor, "prompts d_vocab"]:
    return torch.cat([next_token_logprobs(bridge, batch, reft.edits(batch)) for batch in batches])


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


def _angles(
    a: Reft,
    b: Reft,
    first: list[Operator] | None,
    second: list[Operator] | None,
    common: Sequence[tuple[int, int]],
    *,
    rank: int | None,
    n_null: int,
    seed: int,
) -> _Angles:
    """Mean angles over the common sites, of the decompositions and of the raw spans."""
    if first is None or second is None or not common:
        return _Angles()
    spans_a, spans_b = ([intervention.basis().cpu() for _, intervention in reft] for reft in (a, b))
    if rank is None:
        rank = min(round(op.effective_rank) for i, j in common for op in (first[i], second[j]))
    used = [
        overlap(directions(first[i], rank), directions(second[j], rank), n_null=n_null, seed=seed) for i, j in common
    ]
    raw = [overlap(spans_a[i], spans_b[j], n_null=n_null, seed=seed) for i, j in common]
    means = [
        sum(float(value) for value in values) / len(common)
        for values in (
            [result.angles.mean() for result in used],
            [result.null_angles["haar"].mean() for result in used],
            [result.angles.mean() for result in raw],
            [result.null_angles["haar"].mean() for result in raw],
        )
    ]
    return replace(_Angles(rank), used=means[0], used_null=means[1], raw=means[2], raw_null=means[3])
