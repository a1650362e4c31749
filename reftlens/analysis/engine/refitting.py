"""Turns the strongest write directions of a site together, and refits its readings and constants at each angle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.analysis.engine.chart import Chart
from reftlens.analysis.engine.turning import Outputs, Shift, Side

ROUNDS = 3
EVALUATIONS = 8


@final
@dataclass(frozen=True, eq=False)
class Subspace:
    """The span of a site's k strongest write directions, and one way to turn it: u_j -> u_j + tan(t) a_j v.

    a and v are unit vectors, and v is outside everything that the site writes. The largest
    principal angle between the old span and the new one is t.
    """

    site: int
    chart: Chart
    a: Float[Tensor, " k"]
    v: Float[Tensor, " d_model"]

    def shift(self, tangent: float, refit: Float[Tensor, "direction feature"]) -> Shift:
        """Makes the changes of this turn.

        Args:
            tangent: of the angle.
            refit: what is added to the reading of each of the site's directions, in whitened
                features of the inputs.
        """
        k = len(self.a)
        turned = tangent * self.a[:, None] * self.v
        writes = self.chart.write.clone()
        writes[:k] += turned
        reading = refit.double() @ self.chart.whitening.T
        # (U + dU)^T (r + dr) - U^T r = dU^T r + (U + dU)^T dr.
        return Shift(
            self.site,
            write=torch.cat([turned, writes]),
            read=torch.cat([self.chart.reading[:k], reading[:, :-1]]),
            constant=torch.cat([self.chart.operator.constant[:k].double(), reading[:, -1]]),
        )

    def alone(self, tangent: float) -> list[Shift]:
        """Makes the turn without a refit.

        Args:
            tangent: of the angle.
        """
        return [self.shift(tangent, self.nothing())]

    def nothing(self) -> Float[Tensor, "direction feature"]:
        """Returns a refit that adds nothing."""
        return self.chart.write.new_zeros(self.chart.rank, self.chart.whitening.shape[1])


def subspaces(site: int, chart: Chart, k: int) -> list[tuple[str, Subspace, float]]:
    """Finds the stiffest and the freest way to turn a site's k strongest write directions, by the quadratic form.

    The constants and the readings inside the span of what is read now are profiled out. (With all
    readings profiled out, few prompts could be fitted one by one, and every direction would look
    free.)

    Returns:
        "stiffest" or "freest", the turn, and the tangent that the form predicts to cost one unit.
    """
    # Axes: probe, direction u_j, dimension that it may turn to.
    rows = torch.stack([chart.write_rows(j)[0] @ chart.outside for j in range(k)], dim=1)
    inside = (chart.own.read[:, :k] @ chart.reading.T).flatten(1)
    nuisance = torch.cat([chart.own.constant[:, :k], inside], dim=1)
    basis, sizes, _ = torch.linalg.svd(nuisance, full_matrices=False)
    basis = basis[:, sizes > 1e-9 * sizes[0]]
    flat = rows.flatten(1)
    left = flat - basis @ (basis.T @ flat)
    axes = torch.linalg.svd(left, full_matrices=False).Vh
    found = []
    for name, axis in (("stiffest", axes[0]), ("freest", axes[-1])):
        # The nearest change of the form a v^T, which turns the span in one plane.
        a, _, v = torch.linalg.svd(axis.reshape(k, -1), full_matrices=False)
        turn = Subspace(site, chart, a[:, 0], chart.outside @ v[0])
        cost = (left @ torch.outer(turn.a, v[0]).flatten()).norm()
        found.append((name, turn, float((2**0.5 / cost).clamp(max=1e6))))
    return found


def walk_refitted(
    outputs: Outputs, turn: Subspace, eps: float, start: float, sign: int
) -> tuple[float, float, Float[Tensor, "direction feature"]]:
    """Finds how far a subspace may turn until the real KL is eps, with readings and constants refitted at each angle.

    Args:
        outputs: of the edit.
        turn: the way to turn.
        eps: in nats.
        start: a tangent at which the KL without refitting is at most eps.
        sign: the side.

    Returns:
        The signed tangent, the KL there, and the refit.
    """
    side, refit, before = Side(eps, start), turn.nothing(), start
    best = (0.0, 0.0, refit)
    for _ in range(ROUNDS):
        if side.done:
            break
        # A larger angle needs about so much more of the same compensation.
        kl, refit = _refitted(outputs, turn, sign * side.tangent, refit * (side.tangent / before), eps)
        before = side.tangent
        side.seen(kl)
        if side.best[0] == before:
            best = (sign * before, kl, refit)
    return best


def _refitted(
    outputs: Outputs, turn: Subspace, tangent: float, start: Tensor, eps: float
) -> tuple[float, Float[Tensor, "direction feature"]]:
    refit = start.detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [refit], max_iter=EVALUATIONS, max_eval=EVALUATIONS, line_search_fn="strong_wolfe", history_size=EVALUATIONS
    )
    best = (math.inf, start)

    def closure() -> Tensor:
        nonlocal best
        optimizer.zero_grad()
        with torch.enable_grad():
            (kl,) = outputs.kl([[turn.shift(tangent, refit)]])
            # LBFGS stops by absolute tolerances, so the loss is made of order one.
            loss = kl / eps
            loss.backward()
        # LBFGS may stop at a worse point than one that it has met.
        if float(kl.detach()) < best[0]:
            best = (float(kl.detach()), refit.detach().clone())
        return loss

    optimizer.step(closure)
    return best
