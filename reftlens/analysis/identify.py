"""How far do the outputs determine an edit? The set of edits whose outputs stay within eps, as dimensions and angles.

Let the change be sum_k u_k (r_k . h + c_k), in the directions of `decompose`. Near the edit, a
changed edit costs a KL of 1/2 |X theta|^2, the Gauss-Newton (Fisher) form. The rows of X are
derivatives of the outputs, probed on the light cone (`engine.output_metric`). A write direction u_k
+ tan(t) v costs 1/2 tan(t)^2 |X_k v|^2. A read direction r_k + a costs 1/2 |(I - P) X_k a|^2, where
P projects on the constant's derivative, so that the constant is refitted.

This form is local. It underestimates the KL where directions are free, several times over, so
counts from it are labelled so, and every angle in the result is walked: the real KL of the turned
edit is measured until it is eps. The strongest write directions are also turned together, with all
readings and constants refitted at each angle (LBFGS). A better fit could only turn further, so this
angle is a lower bound. Axes come from one half of the prompts and curvatures from the other,
because the freedom of a reading is mostly that of few prompts.

Not evidence that a direction is the true one: outputs on these prompts determine it so far, those
on others may determine more. Weights that several sites share are treated as if each site had its
own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.decompose import decompose
from reftlens.analysis.engine.chart import Chart, held_out_curvature, strongest
from reftlens.analysis.engine.output_metric import pulls
from reftlens.analysis.engine.refitting import EVALUATIONS, ROUNDS, Subspace, subspaces, walk_refitted
from reftlens.analysis.engine.turning import STEPS, Outputs, Shift, Turned, walk
from reftlens.bridge import side_for_ends
from reftlens.cone.shared import sharing
from reftlens.data import Batch, Given, as_batches
from reftlens.edit.reft import Reft
from reftlens.numbers import require_number, require_whole_number
from reftlens.positions import Positions
from reftlens.results import Identification, Identified, Turn

_BACKWARD = 2
"""Cost of a backward run, in forward runs."""
_STEPS_TAKEN = 2.5
"""Steps that a side of a walk takes as a rule, of `STEPS` at most: 2.2 to 2.5 with three edits of the shipped model."""
_REACHED = 1e-6
"""Part of the largest singular value below which rows do not reach an axis: the rounding error of float32 is 1e-7."""
_RIDGES = (1e-6, 1e-4, 1e-2, 1.0, 100.0)
"""Ridge penalties of a compensation, relative to the mean energy of its rows. Held-out rows choose among them."""


@sharing
@torch.no_grad()
def identify(
    bridge: TransformerBridge,
    reft: Reft,
    prompts: Given,
    *,
    at: Positions | None = None,
    eps: float = 1e-3,
    held_out: Given | None = None,
    toward: Mapping[str, Tensor] | None = None,
    n_walked: int = 2,
    refit: bool = True,
    n_probes: int = 16,
    batch_size: int = 64,
    seed: int = 0,
) -> Identification:
    """Measures how far outputs determine the directions of an edit.

    Outputs are the next-token distributions after each prompt, or at the tokens of its completion.
    `identify_cost` gives the cost beforehand.

    Args:
        bridge: the base.
        reft: the edit.
        prompts: texts, conversations, pairs or batches.
        at: edited tokens that weight the directions, as for `decompose`.
        eps: nats of KL, per wanted token, that count as no change. For a tolerance of d in logits,
            pass d^2 / 2: a small change of the logits costs half of its variance over the next
            token, so d is the standard deviation of that change.
        held_out: further prompts. By default a random half of `prompts` is held out.
        toward: name -> direction `[d_model]`, towards which the walked write and read directions
            are turned as well.
        n_walked: how many write directions, those that move activations furthest, are walked; all
            are counted.
        refit: also turn the strongest write directions of the first walked site together, with the
            rest refitted.
        n_probes: random probes of each prompt.
        batch_size: prompts in one forward pass.
        seed: seed of the halves and the probes.

    Raises:
        NotAffineError: If an edit is not of the form A h + c.
        ValueError: If there are fewer than four prompts, or an edit does not change anything.
    """
    require_number("eps", eps, above=0)
    require_whole_number("n_walked", n_walked, least=1)
    require_whole_number("n_probes", n_probes, least=1)
    batches = as_batches(bridge, prompts, batch_size=batch_size, padding_side=side_for_ends(bridge))
    own, other = (
        _halves(batches, seed)
        if held_out is None
        else (batches, as_batches(bridge, held_out, name="held_out", batch_size=batch_size))
    )
    operators = [strongest(operator) for operator in decompose(bridge, reft, batches, at=at)]
    own_pulls, other_pulls = (
        pulls(bridge, reft, half, operators=operators, n_probes=n_probes, seed=seed + place)
        for place, half in enumerate((own, other))
    )
    charts = [Chart(*parts) for parts in zip(operators, own_pulls, other_pulls, strict=True)]
    strength = {
        (place, k): float(moved) / chart.operator.rms_norm
        for place, chart in enumerate(charts)
        for k, moved in enumerate(chart.operator.spectrum)
    }
    order = sorted(strength, key=lambda one: -strength[one])
    walking = _Walking(Outputs(bridge, reft, own), Outputs(bridge, reft, other), charts, eps)
    turns = walking.turns(
        [way for place, k in order[:n_walked] for way in _ways(charts[place], place, k, toward or {})]
    )
    if refit:
        turns += _subspace_turns(walking, order[0][0])
    curvature, _ = held_out_curvature(
        *(torch.cat(rows, dim=1) for rows in zip(*(c.function_rows for c in charts), strict=True))
    )
    return Identification(
        eps=eps,
        sites=tuple(_site(place, charts, eps) for place in range(len(charts))),
        turns=tuple(turns),
        dimensions=len(curvature),
        free=float(_free(curvature, eps)),
        n_rows=len(own_pulls[0].push),
        n_prompts=sum(map(len, own)),
        n_held_out=sum(map(len, other)),
    )


def identify_cost(n_walked: int = 2, n_probes: int = 16, *, refit: bool = True, n_toward: int = 0) -> float:
    """Returns what `identify` costs at most, in runs of the edit's light cone for all prompts; backward runs count twice.

    Args:
        n_walked: as for `identify`.
        n_probes: as for `identify`.
        refit: as for `identify`.
        n_toward: number of directions in `toward`.
    """
    return sum(_runs(n_walked, n_probes, refit=refit, n_toward=n_toward, steps=STEPS))


def identify_runs(
    n_walked: int = 2, n_probes: int = 16, *, refit: bool = True, n_toward: int = 0
) -> tuple[float, float]:
    """Returns what `identify` costs as a rule: runs by themselves and runs side by side, counted as by `identify_cost`.

    Args:
        n_walked: as for `identify`.
        n_probes: as for `identify`.
        refit: as for `identify`.
        n_toward: number of directions in `toward`.
    """
    return _runs(n_walked, n_probes, refit=refit, n_toward=n_toward, steps=_STEPS_TAKEN)


def _runs(n_walked: int, n_probes: int, *, refit: bool, n_toward: int, steps: float) -> tuple[float, float]:
    # A walk measures both sides on the half that is its own, and once on the other half.
    walk_cost = (2 * steps + 1) / 2
    ways = 2 * n_walked * (2 + n_toward) + 2 * refit
    # Of a refit, each evaluation waits for the one before it; so do the decomposition and the
    # outputs.
    alone = 2 + refit * (ROUNDS * EVALUATIONS * (1 + _BACKWARD) + 1)
    return alone, 1 + n_probes * _BACKWARD + ways * walk_cost


def _halves(batches: Sequence[Batch], seed: int) -> tuple[list[Batch], list[Batch]]:
    """Splits the prompts at random. (Alternating ones would split prompts by whatever alternates in them.)"""
    generator = torch.Generator().manual_seed(seed)
    halves: tuple[list[Batch], list[Batch]] = ([], [])
    larger = 0
    for batch in batches:
        order = torch.randperm(len(batch), generator=generator)
        # Of batches with an odd number of prompts, every other one gives its extra prompt to the
        # other half.
        middle = (len(batch) + 1 - larger) // 2
        larger = (larger + len(batch)) % 2
        for half, rows in zip(halves, (order[:middle], order[middle:]), strict=True):
            if len(rows):
                half.append(_some(batch, rows.sort().values))
    if min(sum(map(len, half)) for half in halves) < 2:
        raise ValueError(
            f"identify needs at least four prompts, of which half are held out, got {sum(map(len, batches))}: pass more, "
            "or others as held_out"
        )
    return halves


def _some(batch: Batch, rows: Int[Tensor, " n"]) -> Batch:
    """Returns these prompts of a batch, with their texts, which position rules may read."""
    there = rows.to(batch.tokens.device)
    return replace(
        batch,
        tokens=batch.tokens[there],
        attention_mask=batch.attention_mask[there],
        prompt_mask=batch.prompt_mask[there],
        labels=batch.labels[there],
        texts=None if batch.texts is None else tuple(batch.texts[row] for row in rows.tolist()),
        offsets=None if batch.offsets is None else batch.offsets[there],
    )


def _free(curvature: Float[Tensor, " dimension"], eps: float) -> int:
    """Counts dimensions where a step of one unit costs less than eps."""
    return int((curvature / 2 < eps).sum())


def _free_within(rows: tuple[Tensor, Tensor], basis: Float[Tensor, "d_model dimension"], eps: float) -> int:
    own, other = (half @ basis for half in rows)
    return _free(held_out_curvature(own, other)[0], eps)


def _site(place: int, charts: Sequence[Chart], eps: float) -> Identified:
    chart = charts[place]
    ranks = range(chart.rank)
    write = [_free_within(chart.write_rows(k), chart.outside, eps) for k in ranks]
    read = [_free_within(chart.read_rows(k), chart.beside_reading(k), eps) for k in ranks]
    others = [other for index, other in enumerate(charts) if index != place]
    return Identified(
        hook_name=chart.operator.hook_name,
        write_free=torch.tensor(write, dtype=torch.float),
        write_dimensions=chart.outside.shape[1],
        read_free=torch.tensor(read, dtype=torch.float),
        read_dimensions=chart.reading.shape[1] - 1,
        read_met=chart.n_met,
        traded=torch.tensor([_traded(chart, k, others) for k in ranks]),
        mean_unseen=chart.mean_unseen,
        site=chart.operator.site,
    )


def _traded(chart: Chart, k: int, others: Sequence[Chart]) -> float:
    """Computes how much of what a write direction's strength does to the outputs the other sites can undo.

    The compensation is a ridge regression on one half of the prompts, and is judged on the other
    half.
    """
    if not others:
        return math.nan
    own, other = (torch.cat(rows, dim=1) for rows in zip(*(c.function_rows for c in others), strict=True))
    x_own, x_other = (half.write[:, k] @ chart.write[k] for half in (chart.own, chart.other))
    gram = own @ own.T
    if not bool(gram.any()):
        return 0.0
    left = []
    for ridge in _RIDGES:
        damped = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        # Solved in rows: there are usually fewer of them than dimensions.
        undo = other @ (own.T @ torch.linalg.solve(damped, x_own))
        left.append(float((x_other - undo).square().sum() / x_other.square().sum().clamp(min=1e-30)))
    return max(0.0, 1 - min(left))


@final
@dataclass(frozen=True, eq=False)
class _Way:
    """A way to turn an edit, before it is walked."""

    turned: Turned
    unit: float
    """The tangent that the quadratic form predicts to cost one nat."""
    named: Mapping[str, Any]
    """Fields of the `Turn`."""


@final
@dataclass(frozen=True, eq=False)
class _Walking:
    """What walks need: the outputs on both halves, and the charts of all sites."""

    own: Outputs
    other: Outputs
    charts: Sequence[Chart]
    eps: float

    def turns(self, ways: Sequence[_Way]) -> list[Turn]:
        """Walks to both sides of each way, and measures its larger turn on the held-out prompts."""
        # The quadratic form costs t^2, so eps is reached at sqrt(eps) times the tangent of one nat.
        predicted = [math.sqrt(self.eps) * way.unit for way in ways]
        sides = walk(self.own, [(way.turned, start) for way, start in zip(ways, predicted, strict=True)], self.eps)
        ends = [(-minus.best[0], plus.best[0]) for minus, plus in sides]
        further = [plus >= -minus for minus, plus in ends]
        held_out = self.other.kl([way.turned(end[side]) for way, end, side in zip(ways, ends, further, strict=True)])
        return [
            Turn(
                predicted=_degrees(start),
                minus=_degrees(end[0]),
                plus=_degrees(end[1]),
                kl=pair[side].best[1],
                held_out_kl=elsewhere,
                eps=self.eps,
                **way.named,
            )
            for way, start, pair, end, side, elsewhere in zip(
                ways, predicted, sides, ends, further, held_out.tolist(), strict=True
            )
        ]


def _degrees(tangent: float) -> float:
    return math.degrees(math.atan(tangent))


def _ways(chart: Chart, place: int, k: int, toward: Mapping[str, Tensor]) -> Iterator[_Way]:
    """Yields turns of one write direction and its reading, each to its stiffest and freest side and to those asked about."""
    for what, rows, there, turned in (
        ("write", chart.write_rows(k)[0], chart.write, _write_turn),
        ("read", chart.read_rows(k)[0], chart.reading[k : k + 1], _read_turn),
    ):
        basis = chart.outside if what == "write" else chart.beside_reading(k)
        # Without dimensions left, or without a reading, there is nothing to turn.
        if not basis.numel() or not bool(rows.any()):
            continue
        for name, axis in (*_extremes(rows, basis, met=what == "read"), *_asked(toward, there)):
            yield _Way(
                partial(turned, chart, place, k, axis),
                # 1/2 t^2 |X axis|^2 = 1.
                float(2**0.5 / (rows @ axis).norm().clamp(min=1e-9)),
                {"site": chart.operator.where, "what": what, "direction": k, "toward": name},
            )


def _extremes(
    rows: Float[Tensor, "row d_model"], basis: Float[Tensor, "d_model dimension"], *, met: bool
) -> Iterator[tuple[str, Float[Tensor, " d_model"]]]:
    """Yields the stiffest and the freest axis inside the span of a basis.

    Args:
        rows: derivatives of the outputs.
        basis: orthonormal columns.
        met: only axes that the rows reach. A reading is free in every direction in which these few
            prompts do not vary.
    """
    inside = rows @ basis
    _, sizes, axes = torch.linalg.svd(inside, full_matrices=False)
    yield "stiffest", basis @ axes[0]
    freest = axes[int((sizes > _REACHED * sizes[0]).sum()) - 1] if met else axes[-1]
    if not met and len(axes) < inside.shape[1]:
        # An axis that no row reaches: the free part of a fixed random vector.
        random = torch.randn(inside.shape[1], generator=torch.Generator().manual_seed(0), dtype=rows.dtype)
        freest = normalize(random - axes.T @ (axes @ random), dim=0)
    yield "freest", basis @ freest


def _asked(
    toward: Mapping[str, Tensor], there: Float[Tensor, "k d_model"]
) -> Iterator[tuple[str, Float[Tensor, " d_model"]]]:
    """Yields the named directions, without their part along the rows that are there already."""
    span = torch.linalg.svd(there, full_matrices=False).Vh
    for name, direction in toward.items():
        given = direction.detach().double().cpu()
        rest = given - span.T @ (span @ given)
        if float(rest.norm()) <= 1e-6 * float(given.norm()):
            raise ValueError(
                f"toward {name!r} needs a direction other than those that the edit writes or reads already, got one inside "
                "their span: leave it out"
            )
        yield name, normalize(rest, dim=0)


def _write_turn(chart: Chart, place: int, k: int, v: Tensor, tangent: float) -> list[Shift]:
    constant = chart.operator.constant[k : k + 1].double()
    return [Shift(place, tangent * v[None], chart.reading[k : k + 1], constant)]


def _read_turn(chart: Chart, place: int, k: int, a: Tensor, tangent: float) -> list[Shift]:
    step = tangent * chart.reading[k].norm() * a
    return [Shift(place, chart.write[k : k + 1], step[None], -(step @ chart.centre(k))[None])]


def _subspace_turns(walking: _Walking, place: int) -> list[Turn]:
    """Turns the strongest write directions of a site together, without and then with refitting."""
    chart = walking.charts[place]
    k = max(1, min(round(chart.operator.effective_rank), chart.rank))
    if not chart.outside.shape[1]:
        return []
    named = {"site": chart.operator.where, "what": "write subspace", "direction": k}
    found = subspaces(place, chart, k)
    plain = walking.turns([_Way(way.alone, unit, {**named, "toward": name}) for name, way, unit in found])
    return [_refitted(walking, way, turn) for (_, way, _), turn in zip(found, plain, strict=True)]


def _refitted(walking: _Walking, way: Subspace, plain: Turn) -> Turn:
    """Walks further on the side where the subspace may turn further, and refits the rest there."""
    sign = 1 if plain.plus >= -plain.minus else -1
    if plain.free or not plain.degrees:
        return plain
    tangent, kl, refit = walk_refitted(walking.own, way, walking.eps, math.tan(math.radians(plain.degrees)), sign)
    (held_out,) = walking.other.kl([[way.shift(tangent, refit)]])
    refitted = replace(plain, kl=kl, held_out_kl=float(held_out))
    return replace(refitted, plus=_degrees(tangent)) if sign > 0 else replace(refitted, minus=_degrees(tangent))
