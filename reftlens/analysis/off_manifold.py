"""Are edited activations outside the range of unedited ones? Norm ratio and percentile of the Mahalanobis distance.

d(h)^2 = (h - mu)^T S^-1 (h - mu), with mean mu and covariance S of unedited activations at the same
site. The prompts are split into three parts. The first gives mu and S (shrunk towards a multiple of
the identity, Chen et al. 2010, "OAS", eq. 23). The second gives the reference distances for the
percentiles. The third is tested: before the edit, after it, and after changes of the same norm in
random directions. Distances of the activations that S was fitted to are too small as a reference:
every edit would look unusual.

mu, S and the percentiles are computed separately for three kinds of token: the first token of a
prompt, massive activations (an unedited norm above four times the median, as at BOS and some
delimiters), and all others. One massive activation among the others would inflate S, and with it
the shrinkage target, until no change is visible. A kind with few tokens or without variance uses
the S of the most frequent kind.

Not evidence of harm: an activation may be unusual in a direction that no later layer reads. One d x
d Cholesky factor of S is needed per site and kind. The activations are not kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import einsum, repeat
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.controls.turned import turned
from reftlens.analysis.engine.activations import edited_in
from reftlens.bridge import side_for_ends
from reftlens.cone.shared import sharing
from reftlens.data import Batch, Given, as_batches
from reftlens.edit.hooks import Edit
from reftlens.edit.reft import Reft
from reftlens.results import OffManifold

_MASSIVE = 4.0
"""Norm above which an activation is massive, as a multiple of the median norm."""

_Factor = tuple[Tensor, Tensor, float]
"""Mean, Cholesky factor of the shrunk covariance, and the amount of shrinkage."""


class _Natural:
    """Running mean and covariance of unedited activations, in float64."""

    def __init__(self, d_model: int) -> None:
        self.n = 0
        self.total = torch.zeros(d_model, dtype=torch.float64)
        self.second = torch.zeros(d_model, d_model, dtype=torch.float64)

    def add(self, h: Float[Tensor, "tokens d_model"]) -> None:
        h = h.double().cpu()
        self.n += len(h)
        self.total += h.sum(dim=0)
        self.second += einsum(h, h, "token i, token j -> i j")

    @property
    def mean(self) -> Float[Tensor, " d_model"]:
        return self.total / self.n

    def varies(self) -> bool:
        """Returns whether these activations differ by more than rounding error."""
        if not self.n:
            return False
        # If all activations are equal, as at BOS, float32 rounding leaves a variance of about 1e-14
        # |h|^2.
        trace = float(self.second.trace()) / self.n - float(self.mean.square().sum())
        return trace > 1e-10 * float(self.mean.square().sum())

    def factor(self) -> _Factor:
        mean = self.mean
        covariance = self.second / self.n - torch.outer(mean, mean)
        p, trace, square = len(mean), float(covariance.trace()), float(covariance.square().sum())
        if not self.varies():
            raise ValueError(
                "all natural activations are equal, so distances cannot be measured in units of their spread"
            )
        gap = square - trace**2 / p
        # gap is 0 only for a multiple of the identity, which is what S would be shrunk to.
        wanted = ((1 - 2 / p) * square + trace**2) / ((self.n + 1 - 2 / p) * gap) if gap > 0 else 1.0
        # The floor keeps directions without variance from getting an infinite weight by rounding.
        shrinkage = min(1.0, max(wanted, 1e-6))
        shrunk = (1 - shrinkage) * covariance + shrinkage * trace / p * torch.eye(p, dtype=torch.float64)
        return mean, torch.linalg.cholesky(shrunk), shrinkage


class _Kinds:
    """Unedited activations of one site, by the kind of token."""

    def __init__(self, d_model: int) -> None:
        self.massive: float | None = None
        self.natural = [_Natural(d_model) for _ in range(3)]

    def of(self, edit: Edit, batch: Batch, h: Float[Tensor, "tokens d_model"]) -> Int[Tensor, " tokens"]:
        """Returns each token's kind before the edit: 1 for the first of a prompt, 2 for other massive ones, 0 for the rest."""
        norm = h.double().norm(dim=-1).cpu()
        # Set by the first batch of the fit, so that all three parts use one threshold.
        if self.massive is None:
            self.massive = _MASSIVE * float(norm.median())
        first = (batch.prompts.place[edit.mask] == 0).cpu()
        return torch.where(first, 1, 2 * (norm > self.massive).long())

    def add(self, kinds: Int[Tensor, " tokens"], h: Float[Tensor, "tokens d_model"]) -> None:
        for kind, natural in enumerate(self.natural):
            natural.add(h.cpu()[kinds == kind])

    @property
    def n(self) -> int:
        return sum(natural.n for natural in self.natural)

    def factors(self) -> list[_Factor]:
        """Returns the factor of each kind, or the most frequent kind's if there are too few tokens; last the most frequent's."""
        varying = [natural for natural in self.natural if natural.varies()]
        if not varying:
            # Each kind has one distinct activation (BOS, or the first word of a template), so the
            # kinds are pooled.
            return [self._pooled().factor()] * (len(self.natural) + 1)
        of_main = max(varying, key=lambda natural: natural.n).factor()
        return [*(self._factor(natural, of_main) for natural in self.natural), of_main]

    def _pooled(self) -> _Natural:
        pooled = _Natural(len(self.natural[0].total))
        for natural in self.natural:
            pooled.n += natural.n
            pooled.total += natural.total
            pooled.second += natural.second
        return pooled

    @staticmethod
    def _factor(natural: _Natural, of_main: _Factor) -> _Factor:
        if not natural.n:
            return of_main
        own = natural.n >= 2 * len(of_main[0]) and natural.varies()
        return natural.factor() if own else (natural.mean, *of_main[1:])


@sharing
@torch.no_grad()
def off_manifold(bridge: TransformerBridge, reft: Reft, prompts: Given, *, seed: int = 0) -> list[OffManifold]:
    """Compares edited with unedited activations at each site.

    Args:
        bridge: the base.
        reft: the edit.
        prompts: at least three texts, conversations, pairs or batches. Batches are assigned in turn
            to fitting, reference and test. Shuffle the prompts first if neighbours are similar.
        seed: seed of the control.

    Raises:
        ValueError: If there are fewer than three batches, or the unedited activations do not vary.
    """
    batches = as_batches(bridge, prompts, at_least=3, padding_side=side_for_ends(bridge))
    if len(batches) < 3:
        raise ValueError(
            f"off_manifold needs at least three batches (fit, reference and test), got {len(batches)}: use smaller batches"
        )
    fit, reference, test = (batches[part::3] for part in range(3))
    # Scale 0 keeps sites and tokens, and no earlier site changes the activations.
    base = reft.scaled(0.0)
    sites = [_Kinds(intervention.d_model) for _, intervention in reft]
    for batch, seen in zip(fit, edited_in(bridge, base, fit), strict=True):
        for site, (edit, h) in zip(sites, seen, strict=True):
            site.add(site.of(edit, batch, h), h)
    factors = [site.factors() for site in sites]
    kinds = _kinds(bridge, base, reference, sites), _kinds(bridge, base, test, sites)
    # A kind without reference tokens has no percentiles of its own.
    lacking = [[kind not in of.tolist() for kind in range(3)] for of in kinds[0]]
    shown = [_where(of, lacks) for of, lacks in zip(kinds[1], lacking, strict=True)]
    known = _measure(bridge, base, reference, factors, kinds[0])
    own, edited, control = (
        _measure(bridge, run, test, factors, shown) for run in (base, reft, turned(reft, seed=seed))
    )

    def percentile(distance: Tensor, i: int) -> Float[Tensor, " token"]:
        return _percentile(distance, shown[i], known[i][0], kinds[0][i])

    return [
        OffManifold(
            hook_name=at.hook_name,
            site=reft.site_names[i],
            norm_ratio=edited[i][2].float(),
            natural=percentile(own[i][0], i),
            edited=percentile(edited[i][1], i),
            control=percentile(control[i][1], i),
            shrinkage=factors[i][-1][2],
            n_fit=sites[i].n,
            n_reference=len(known[i][0]),
        )
        for i, at in enumerate(reft.sites)
    ]


def _kinds(
    bridge: TransformerBridge, base: Reft, batches: Sequence[Batch], sites: Sequence[_Kinds]
) -> list[Int[Tensor, " _tokens"]]:
    """Returns the kind of every token at each site, in the base."""
    found: list[list[Tensor]] = [[] for _ in sites]
    for batch, seen in zip(batches, edited_in(bridge, base, batches), strict=True):
        for kinds, site, (edit, h) in zip(found, sites, seen, strict=True):
            kinds.append(site.of(edit, batch, h))
    return [torch.cat(parts) for parts in found]


def _where(kinds: Int[Tensor, " tokens"], lacks: Sequence[bool]) -> Int[Tensor, " tokens"]:
    """Returns the kinds, with 3 (measured by the most frequent kind) for those without reference tokens."""
    return torch.where(torch.tensor(lacks)[kinds], 3, kinds)


def _percentile(
    distance: Float[Tensor, " token"], kinds: Tensor, known: Float[Tensor, " reference"], of: Int[Tensor, " reference"]
) -> Float[Tensor, " token"]:
    """Computes percentiles among the reference tokens of the same kind; among all of them for kind 3."""
    out = torch.full(distance.shape, torch.nan)
    for kind in kinds.unique().tolist():
        scale = (known if kind == 3 else known[of == kind]).sort().values
        # Equal distances count half, because BOS has the same activation in every prompt.
        below, upto = (torch.searchsorted(scale, distance[kinds == kind], right=right) for right in (False, True))
        out[kinds == kind] = (50 * (below + upto) / len(scale)).float()
    return out


def _measure(
    bridge: TransformerBridge,
    reft: Reft,
    batches: Sequence[Batch],
    factors: Sequence[Sequence[_Factor]],
    kinds: Sequence[Int[Tensor, " _tokens"]],
) -> list[Float[Tensor, "3 _tokens"]]:
    """Computes, per site, the distance before and after the edit and the norm ratio of every edited token."""
    found: list[list[Tensor]] = [[] for _ in factors]
    begun = [0] * len(factors)
    for seen in edited_in(bridge, reft, batches):
        for i, (edit, h) in enumerate(seen):
            after = h + edit.change(h)
            h, after = h.double().cpu(), after.double().cpu()
            # By the unedited token: an edit must not move it to a kind where it looks usual.
            those = kinds[i][begun[i] : begun[i] + len(h)]
            begun[i] += len(h)
            measured = repeat(after.norm(dim=-1) / h.norm(dim=-1), "token -> number token", number=3).clone()
            for kind in those.unique().tolist():
                mean, root, _ = factors[i][kind]
                here = those == kind
                measured[:2, here] = torch.stack([_distance(state[here], mean, root) for state in (h, after)])
            found[i].append(measured)
    return [torch.cat(parts, dim=1) for parts in found]


def _distance(h: Float[Tensor, "tokens d_model"], mean: Tensor, root: Tensor) -> Float[Tensor, " tokens"]:
    # |L^-1 (h - mu)| with S = L L^T; S is never inverted.
    return torch.linalg.solve_triangular(root, (h - mean).T, upper=False).norm(dim=0)
