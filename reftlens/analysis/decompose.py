"""Which directions does an edit use? Decomposes the edit as an operator, weighted by the activations that it edits.

The parameters of delta(h) = A h + c are determined only up to a rotation of the rank-r coordinates
(LoReFT) or any invertible map of them (DiReFT), so R and W themselves are not meaningful. Let mu
and S be the mean and covariance of the edited activations. Take the singular value decomposition of
[A S^(1/2), A mu + c]. The left vectors are the write directions, the right vectors describe what is
read, and the spectrum is the rms change along each direction. The left vectors are the eigenvectors
of E[delta delta^T], so they do not depend on the parametrisation. Neither S nor its root is formed:
moments of the change's r coordinates, and their r x d covariance with the activations, are enough.
For an edit that can write anywhere (RED), r is d.

Not evidence by itself. Later layers may ignore a write direction. An untrained edit has a spectrum
too: compare with one, decomposed on the same inputs. Other edits with the same outputs may have
other directions. In a test, edits of all tokens one block before the last were fitted to a planted
LoReFT of rank 2. With the mean square of the logits at every prompt token as the loss, students of
rank 2, 4 and 8 recovered its directions within 5 degrees on `facts-small`, whose prompts are
sentences. On a model trained on modular sums, their outputs matched, and their directions were off
by 44 to 66 degrees. With `Distillation` on completions, those on `facts-small` were off by 17 and
43 degrees while outputs agreed. Such directions are not identified (`reftlens benchmark --only
planted`). Other losses, sites and data were not tested.
"""

from __future__ import annotations

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.activations import edited_in
from reftlens.bridge import side_for_ends
from reftlens.data import Given, as_batches
from reftlens.edit.reft import Reft
from reftlens.interventions import Intervention
from reftlens.positions import Positions
from reftlens.results import Operator


class _Moments:
    """Running moments of a site's changes and activations in float64. No activation is stored."""

    def __init__(self, hook_name: str, site: str, intervention: Intervention, scale: float) -> None:
        self.hook_name, self.site = hook_name, site
        affine = intervention.affine()
        self.basis = affine.basis()
        # In the basis of the written space: change = gain h + push, with gain [k, d].
        # Scaled: the spectrum is that of the change in the run, not of the weights.
        self.gain, self.push = (scale * t.detach() for t in affine.along(self.basis))
        self.n = 0
        self.first = torch.zeros_like(self.push)
        self.second = torch.zeros(len(self.push), len(self.push), dtype=torch.float64, device=self.push.device)
        self.cross = torch.zeros_like(self.gain)
        self.total = torch.zeros(self.gain.shape[1], dtype=torch.float64, device=self.push.device)
        self.energy = 0.0

    def add(self, h: Float[Tensor, "tokens d_model"]) -> None:
        # A variance is a small difference of large sums, which float32 would lose.
        h = h.double()
        change = einsum(h, self.gain, "token d_model, k d_model -> token k") + self.push
        self.n += len(h)
        self.first += change.sum(dim=0)
        self.second += einsum(change, change, "token i, token j -> i j")
        self.cross += einsum(change, h, "token k, token d_model -> k d_model")
        self.total += h.sum(dim=0)
        self.energy += float(h.square().sum())

    def result(self) -> Operator:
        mean, second = self.first / self.n, self.second / self.n
        if not bool(second.any()):
            raise ValueError(
                f"{self.site}: the edit at {self.hook_name} does not change any of these activations, so it has no directions"
            )
        energy, vectors = torch.linalg.eigh(second)
        order = energy.argsort(descending=True)
        # E[delta delta^T] has no negative eigenvalues but for rounding.
        energy, vectors = energy[order].clamp(min=0), vectors[:, order].T
        # Directions with less than 1e-12 of the energy are rounding error (such as for a constant
        # inside span(R)).
        used = energy > 1e-12 * energy[0]
        energy, vectors = energy[used], vectors[used]
        # An eigenvector has no sign of its own: the mean change is made positive along each.
        vectors = torch.where((vectors @ mean)[:, None] < 0, -vectors, vectors)
        # Without the mean: the part of the change that depends on the input.
        varying = torch.linalg.eigvalsh(second - torch.outer(mean, mean)).flip(0)
        share = ((vectors @ mean) ** 2 / energy).clamp(max=1)
        # Cov(change, h). `read` may also weigh coordinates that never vary; the pattern cannot.
        pattern = vectors @ (self.cross / self.n - torch.outer(mean, self.total / self.n))
        # The covariance of a constant direction is rounding, which normalising would blow up.
        pattern = torch.nn.functional.normalize(pattern, dim=-1).where(share[:, None] < 1 - 1e-9, 0.0)
        return Operator(
            hook_name=self.hook_name,
            write=(vectors @ self.basis).float().cpu(),
            read=(vectors @ self.gain).float().cpu(),
            constant=(vectors @ self.push).float().cpu(),
            spectrum=energy.sqrt().float().cpu(),
            constant_share=share.float().cpu(),
            rms_norm=(self.energy / self.n) ** 0.5,
            n_tokens=self.n,
            pattern=pattern.float().cpu(),
            site=self.site,
            input_spectrum=varying[varying > 1e-12 * energy[0]].sqrt().float().cpu(),
        )


@torch.no_grad()
def decompose(bridge: TransformerBridge, reft: Reft, prompts: Given, *, at: Positions | None = None) -> list[Operator]:
    """Computes the data-weighted decomposition of each site's edit, in one pass over the batches.

    Args:
        bridge: the base.
        reft: the edit.
        prompts: real texts, conversations, pairs or batches. Their edited activations give the
            weighting.
        at: weight only by these edited tokens, for example `Last(1)` if only they carry the effect.

    Returns:
        One result per site, in order.

    Raises:
        NotAffineError: If an edit is not of the form A h + c.
        ValueError: If there are no prompts, no prompt of a batch has the positions, `at` selects no
            edited token, or an edit does not change anything.
    """
    scales = [reft.scales.get(name, 1.0) for name in reft.names]
    moments = [
        _Moments(site.hook_name, name, intervention, scale)
        for (site, intervention), name, scale in zip(reft, reft.site_names, scales, strict=True)
    ]
    batches = as_batches(bridge, prompts, padding_side=side_for_ends(bridge))
    for batch, seen in zip(batches, edited_in(bridge, reft, batches), strict=True):
        wanted = batch.prompt_mask if at is None else at.mask(batch.prompts)
        for moment, (edit, h) in zip(moments, seen, strict=True):
            # h has one row for each True of edit.mask, in row order, and so has wanted[edit.mask].
            moment.add(h[wanted[edit.mask]])
    for moment in moments:
        if moment.n == 0:
            raise ValueError(f"{moment.site} does not edit any token that {at!r} selects")
    return [moment.result() for moment in moments]
