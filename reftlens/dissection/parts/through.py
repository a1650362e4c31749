"""Through what does it act? The later heads and MLPs that carry the effect, and the paths between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from reftlens import analysis, plot
from reftlens.dissection.found import Found
from reftlens.dissection.parts.part import Part, Sizes, Spent, picture, table
from reftlens.dissection.work import Work
from reftlens.plot.labels import spoken
from reftlens.plot.page import Picture, Section
from reftlens.results import PatchMap


def _through(work: Work) -> dict[str, Any]:
    prompts, metric = work.mapped
    seed = work.config.seed
    found: dict[str, Any] = {}
    for field, point, over in (("heads", "z", "heads"), ("mlps", "mlp_out", "positions")):
        try:
            found[field] = analysis.mediate(
                work.bridge, work.reft, prompts, metric, point=point, over=over, seed=seed, progress=False
            )
        except ValueError as error:
            work.left_out.append((f"through: {field}", str(error)))
    try:
        found["direct"] = analysis.direct_effect(work.bridge, work.reft, prompts, metric)
        # The directions of the maps' control, which has this seed too.
        placebo = analysis.turned(work.reft, seed=seed)
        found["direct_control"] = analysis.direct_effect(work.bridge, placebo, prompts, metric)
    except ValueError as error:
        work.left_out.append(("through: the direct effect", str(error)))
    return found


def components(heads: PatchMap | None, mlps: PatchMap | None) -> list[tuple[str, float, float]]:
    """Returns every head and MLP with the part of the effect that it carries, largest first, and its control's.

    Args:
        heads: from `mediate` over heads.
        mlps: from `mediate` of "mlp_out" over positions; the strongest token of each counts.
    """
    found: list[tuple[str, float, float]] = []
    for result in (heads, mlps):
        if result is None:
            continue
        value, control = result.restored(), result.restored(result.control)
        for layer in range(len(result.rows)):
            if result is heads:
                found += [
                    (f"{layer}.{head}", float(value[layer, head]), float(control[layer, head]))
                    for head in range(value.shape[1])
                ]
            else:
                place = int(torch.nan_to_num(value[layer]).abs().argmax())
                found.append((f"mlp{layer}", float(value[layer, place]), float(control[layer, place])))
    return sorted(found, key=lambda item: -abs(item[1]))


def _named(found: Sequence[tuple[str, float, float]]) -> str:
    return ", ".join(f"{spoken(name)} {value:.2f} (control {control:.2f})" for name, value, control in found)


def _strongest(paths: PatchMap) -> list[tuple[str, float, float]]:
    """Paths with the part of the effect that they carry, largest first, and their control's."""
    value, control = paths.restored(), paths.restored(paths.control)
    found = [
        (f"{spoken(sender)} to {spoken(receiver)}", float(value[row, column]), float(control[row, column]))
        for row, sender in enumerate(paths.rows)
        for column, receiver in enumerate(paths.columns)
        if bool(value[row, column].isfinite())
    ]
    return sorted(found, key=lambda item: -abs(item[1]))


def _paths(work: Work) -> dict[str, Any]:
    prompts, metric = work.mapped
    carrying = [name for name, value, _ in components(work.found.get("heads"), work.found.get("mlps")) if value != 0]
    chosen = carrying[: work.config.n_paths]
    if not chosen:
        raise ValueError("no head and no MLP carries any part of the effect, so there are no paths to follow")
    found = analysis.paths(
        work.bridge,
        work.reft,
        prompts,
        metric,
        senders=["edit", *chosen],
        receivers=[*chosen, "logits"],
        seed=work.config.seed,
        progress=False,
    )
    return {"paths": found}


def _draw_through(found: Found) -> Section | None:
    maps = [result for result in (found.heads, found.mlps) if result is not None]
    if not maps:
        return None
    tables = [
        (f"Each {name}", table([result.to_dataframe()]))
        for name, result in (("head", found.heads), ("MLP and token", found.mlps))
        if result is not None
    ]
    drawn: tuple[Picture, ...] = ()
    # plot.mediation refuses maps in which no component changes anything.
    if any(bool((result.values - result.base[:, None, None]).nan_to_num().any()) for result in maps):
        drawn = (
            picture(
                "through",
                plot.mediation(maps, direct=found.direct),
                "Left: the ways from the edit to the logits, each through one head or MLP; a thicker line carries more of the "
                "effect. Right: the same parts with 95% intervals; crosses are the control.",
                f"Strongest: {_named(components(found.heads, found.mlps)[:5])}.",
            ),
        )
    return Section(
        THROUGH.heading,
        (
            "The base runs with the output of one head (at all tokens) or one MLP (at one token) taken from the edited run: the part "
            "of the effect that it carries alone. Parts need not sum to 1: ways run through several components, and one can stand "
            "in for another. Control: the same outputs under the edit turned to random directions (one draw).",
        ),
        drawn,
        tuple(tables),
        maps=tuple(
            (caption, result)
            for caption, result in (("Each head, at all tokens", found.heads), ("Each MLP, at one token", found.mlps))
            if result is not None
        ),
    )


def _draw_paths(found: Found) -> Section | None:
    if found.paths is None:
        return None
    return Section(
        PATHS.heading,
        (
            "The change that one component makes, read by only one later component, with everything else as in the base. 2.1 is "
            "head 1 of layer 2. Only paths between the components that carry most are followed.",
        ),
        (
            picture(
                "paths",
                plot.mediation(found.paths, title="Along which paths"),
                "Left: the strongest paths from the edit to the logits; a thicker line carries more of the effect. Right: the "
                "same parts with 95% intervals; crosses are the control.",
                f"Strongest: {_named(_strongest(found.paths)[:5])}.",
            ),
        ),
        (("Each path", table([found.paths.to_dataframe().dropna(subset="mean")])),),
        maps=(("Each path, from its row to its column", found.paths),),
    )


def _cost_through(sizes: Sizes) -> Spent:
    # Only cells behind the edit change anything. One of layer l runs the layers from l on, and one
    # token's about half of the columns. Each map has a control; the runs that they come from are
    # recorded: three for each, and four more.
    cells = sizes.behind * (sizes.heads + (1 + sizes.cone) / 2) / 2
    return Spent(10 * sizes.mapped, variants=sizes.mapped * (1 + 2 * cells))


def _cost_paths(sizes: Sizes) -> Spent:
    n = sizes.config.n_paths
    # A sender's change runs through whole prompts, then each receiver's through a cone of about
    # half the layers.
    return Spent(sizes.mapped * (3 + 2 * (n + 1)), variants=sizes.mapped * (n + 1) * n / 2)


THROUGH = Part(
    name="through",
    heading="Through what?",
    compute=_through,
    cost=_cost_through,
    draw=_draw_through,
    preset="quick",
)
PATHS = Part(
    name="paths",
    heading="Along which paths?",
    compute=_paths,
    cost=_cost_paths,
    draw=_draw_paths,
    preset="full",
    needs=("through",),
)
