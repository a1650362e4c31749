"""Does the edit take activations where the model has never been? Norm ratio, and Mahalanobis percentile.

d(h)^2 = (h - mu)^T S^-1 (h - mu), with mu and S of natural activations at the same site. The prompts are dealt into three
parts: one gives mu and S (shrunk towards a multiple of the identity, Chen et al. 2010, "OAS", eq. 23), the second the
distances that percentiles refer to, the third is tested: before the edit, after it, and after the same edit turned to
random directions. Distances of the activations that S was fitted to would be too small, and every edit would look
strange beside them.

Not evidence of harm: an activation may be unusual in a direction that nothing reads. One Cholesky factor of S, d x d,
is needed for each site; the activations are not kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.controls.turned import turned
from reftlens.analysis.engine.activations import edited_activations
from reftlens.data import Batch
from reftlens.edit.reft import Reft
from reftlens.results import OffManifold


class _Natural:
    """Running mean and covariance of natural activations, in float64."""

    def __init__(self, d_model: int) -> None:
        self.n = 0
        self.total = torch.zeros(d_model, dtype=torch.float64)
        self.second = torch.zeros(d_model, d_model, dtype=torch.float64)

    def add(self, h: Float[Tensor, "tokens d_model"]) -> None:
        h = h.double().cpu()
        self.n += len(h)
        self.total += h.sum(dim=0)
        self.second += h.T @ h

    def factor(self) -> tuple[Tensor, Tensor, float]:
        """Mean, Cholesky factor of the shrunk covariance, and how far it was shrunk."""
        mean = self.total / self.n
        covariance = self.second / self.n - torch.outer(mean, mean)
        p, trace, square = len(mean), float(covariance.trace()), float(covariance.square().sum())
        # Float32 leaves about 1e-14 of |h|^2 where all activations are equal, as those of a BOS token are.
        if not trace > 1e-10 * float(mean.square().sum()):
            raise ValueError("the natural activations are all alike: there is no spread to measure distances by")
        gap = square - trace**2 / p
        wanted = ((1 - 2 / p) * square + trace**2) / ((self.n + 1 - 2 / p) * gap) if gap > 0 else 1.0
        # A floor keeps directions without any natural spread from an infinite weight by rounding.
        shrinkage = min(1.0, max(wanted, 1e-6))
        shrunk = (1 - shrinkage) * covariance + shrinkage * trace / p * torch.eye(p, dtype=torch.float64)
        return mean, torch.linalg.cholesky(shrunk), shrinkage


@torch.no_grad()
def off_manifold(
    bridge: TransformerBridge, reft: Reft, batches: Sequence[Batch], *, seed: int = 0
) -> list[OffManifold]:
    """Where edited activations lie among natural ones, for each site.

    Args:
        bridge: the base.
        reft: the edit.
        batches: at least three, with different prompts: dealt in turn to fitting, reference and test. Shuffle the
            prompts first if neighbours are alike.
        seed: draws the control.

    Raises:
        ValueError: for fewer than three batches, or natural activations without spread.
    """
    if len(batches) < 3:
        raise ValueError(
            f"off_manifold needs three batches at least (to fit, to refer to, to test), got {len(batches)}: use a "
            "smaller batch"
        )
    fit, reference, test = (batches[part::3] for part in range(3))
    base = reft.scaled(0.0)
    natural = [_Natural(intervention.d_model) for _, intervention in reft]
    for batch in fit:
        for moments, (_, h) in zip(natural, edited_activations(bridge, base, batch), strict=True):
            moments.add(h)
    factors = [moments.factor() for moments in natural]
    known = _measure(bridge, base, reference, factors)
    edited, control = (_measure(bridge, run, test, factors) for run in (reft, turned(reft, seed=seed)))
    own = _measure(bridge, base, test, factors)
    results = []
    for i, site in enumerate(reft.sites):
        scale = known[i][0].sort().values

        def percentile(distance: Tensor, scale: Tensor = scale) -> Tensor:
            # Equal distances (a BOS token is the same everywhere) count half.
            below, upto = (torch.searchsorted(scale, distance, right=right) for right in (False, True))
            return (50 * (below + upto) / len(scale)).float()

        results.append(
            OffManifold(
                hook_name=site.hook_name,
                norm_ratio=edited[i][2].float(),
                natural=percentile(own[i][0]),
                edited=percentile(edited[i][1]),
                control=percentile(control[i][1]),
                shrinkage=factors[i][2],
                n_fit=natural[i].n,
                n_reference=len(scale),
            )
        )
    return results


def _measure(
    bridge: TransformerBridge, reft: Reft, batches: Sequence[Batch], factors: Sequence[tuple[Tensor, Tensor, float]]
) -> list[Float[Tensor, "3 tokens"]]:
    """For each site: distance before and after the edit, and norm ratio, of every edited token."""
    found: list[list[Tensor]] = [[] for _ in factors]
    for batch in batches:
        for i, (edit, h) in enumerate(edited_activations(bridge, reft, batch)):
            after = h + edit.change(h)
            h, after = h.double().cpu(), after.double().cpu()
            mean, root, _ = factors[i]
            distances = [_distance(state, mean, root) for state in (h, after)]
            found[i].append(torch.stack([*distances, after.norm(dim=-1) / h.norm(dim=-1)]))
    return [torch.cat(parts, dim=1) for parts in found]


def _distance(h: Float[Tensor, "tokens d_model"], mean: Tensor, root: Tensor) -> Float[Tensor, " tokens"]:
    return torch.linalg.solve_triangular(root, (h - mean).T, upper=False).norm(dim=0)
