"""Which directions does an edit really use? The edit as an operator, weighted by the data that it meets.

delta(h) = A h + c is known only up to a rotation of its rank-r coordinates (LoReFT) or any change of them (DiReFT), so
R and W by themselves are not an answer. With mean mu and covariance S of the activations that are really edited,
take the singular value decomposition of [A S^(1/2), A mu + c]: left vectors are write directions, right vectors
say what is read, the spectrum is how far each direction moves. The left side equals the eigenvectors of
E[delta delta^T], so it does not depend on how the edit was parametrised, and neither S nor its root is ever formed:
moments of the r coordinates of the change, and their r x d covariance with the activations, are enough. An edit
that can write anywhere (RED) has d coordinates, so that r is d there.

Not evidence by itself: a direction that is written may still be ignored by every later layer, and an untrained edit
has a spectrum too: put it beside, decomposed on the same inputs. Nor are these the directions that any edit with the same
outputs must have. Edits of all tokens one block before the last were fitted to a planted LoReFT of rank 2. With the mean square of
the logits at every prompt token as the loss, students of rank 2, 4 and 8 had its directions within 5 degrees on `facts-small`,
whose prompts are sentences; on a model trained on modular sums they said what it said and were off by 44 to 66 degrees.
With `Distillation` on completions, `facts-small` was off by 17 and 43 degrees while outputs agreed. Such directions
are not identified (`reftlens benchmark --only planted`). Of other losses, sites and data nothing is known.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.activations import edited_activations
from reftlens.data import Given, as_batches
from reftlens.edit.reft import Reft
from reftlens.interventions import Intervention
from reftlens.positions import Positions
from reftlens.results import Operator


class _Moments:
    """Running moments of a site's changes and activations in float64, so that no activation is kept."""

    def __init__(self, hook_name: str, site: str, intervention: Intervention, scale: float) -> None:
        self.hook_name, self.site = hook_name, site
        affine = intervention.affine()
        self.basis = affine.basis()
        # In the basis of the written space: change = gain h + push, with gain [k, d].
        self.gain, self.push = (scale * t.detach() for t in affine.along(self.basis))
        self.n = 0
        self.first = torch.zeros_like(self.push)
        self.second = torch.zeros(len(self.push), len(self.push), dtype=torch.float64, device=self.push.device)
        self.cross = torch.zeros_like(self.gain)
        self.total = torch.zeros(self.gain.shape[1], dtype=torch.float64, device=self.push.device)
        self.energy = 0.0

    def add(self, h: Float[Tensor, "tokens d_model"]) -> None:
        h = h.double()
        change = h @ self.gain.T + self.push
        self.n += len(h)
        self.first += change.sum(dim=0)
        self.second += change.T @ change
        self.cross += change.T @ h
        self.total += h.sum(dim=0)
        self.energy += float(h.square().sum())

    def result(self) -> Operator:
        mean, second = self.first / self.n, self.second / self.n
        if not bool(second.any()):
            raise ValueError(
                f"{self.site}: the edit at {self.hook_name} changes nothing here, so there is nothing to decompose"
            )
        energy, vectors = torch.linalg.eigh(second)
        order = energy.argsort(descending=True)
        energy, vectors = energy[order].clamp(min=0), vectors[:, order].T
        # A direction that carries less than 1e-12 of the energy is rounding (a constant inside span(R), say).
        used = energy > 1e-12 * energy[0]
        energy, vectors = energy[used], vectors[used]
        vectors = torch.where((vectors @ mean)[:, None] < 0, -vectors, vectors)
        varying = torch.linalg.eigvalsh(second - torch.outer(mean, mean)).flip(0)
        share = ((vectors @ mean) ** 2 / energy).clamp(max=1)
        pattern = vectors @ (self.cross / self.n - torch.outer(mean, self.total / self.n))
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
    """The data-weighted decomposition of each site's edit, in one pass over the batches.

    Args:
        bridge: the base.
        reft: the edit.
        prompts: real texts, conversations, pairs or batches; the edited activations among them give the weighting.
        at: weight by these of the edited tokens alone, for example `Last(1)` where only they carry the effect.

    Returns:
        One result for each site, in order.

    Raises:
        NotAffineError: for an edit that is no A h + c.
        ValueError: for no prompts, positions that no prompt of a batch has, `at` without an edited token, or an
            edit that changes nothing.
    """
    scales = [reft.scales.get(name, 1.0) for name in reft.names]
    moments = [
        _Moments(site.hook_name, name, intervention, scale)
        for (site, intervention), name, scale in zip(reft, reft.site_names, scales, strict=True)
    ]
    for batch in as_batches(bridge, prompts):
        wanted = batch.prompt_mask if at is None else at.mask(batch.prompts)
        for moment, (edit, h) in zip(moments, edited_activations(bridge, reft, batch), strict=True):
            moment.add(h[wanted[edit.mask]])
    for moment in moments:
        if moment.n == 0:
            raise ValueError(f"no token at {at!r} is edited at {moment.site}")
    return [moment.result() for moment in moments]
