"""Rows of the table for the hand-made models: a true variable, an illusion of one, and a path."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from reftlens.analysis import interchange, paths
from reftlens.benchmark.handmade import attention_reads_it, illusion, illusion_in_residual, two_steps
from reftlens.benchmark.known import Known
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.interventions import Interchange
from reftlens.positions import First
from reftlens.results import Interchanged

PATH = (("edit", "1.0"), ("1.0", "mlp2"), ("mlp2", "logits"))
"""The steps of the path in the last model."""


def handmade_rows() -> Iterator[Known]:
    """Runs interchange along a direction that a head reads, and along an illusory one."""
    model = attention_reads_it()
    result = interchange(model.bridge, "blocks.0.hook_resid_post", model.true, model.base, model.source, at=First(1))
    group = "hand-built variable"
    yield Known(
        group,
        "interchange in it changes every answer",
        _flips(result.inside.flips),
        1 - result.inside.flips,
        0.0,
        "share",
    )
    yield Known(
        group,
        "interchange in its complement changes none",
        _flips(result.complement.flips),
        result.complement.flips,
        0.0,
        "share",
    )
    for name, swaps in (
        ("random directions", result.random),
        ("placebos, moved as far in random directions,", result.placebo),
    ):
        flips = [swap.flips for swap in swaps]
        mean = sum(flips) / len(flips)
        yield Known(
            group, f"{name} change few", f"{mean:.0%} on average, {max(flips):.0%} at most", mean, 0.25, "share"
        )
    yield from illusion_rows()
    yield _path_row()


WEIGHTS = (0.0, 0.001, 0.01, 0.1)
"""Strengths with which non-answer tokens read the direction that carries nothing."""


def illusion_rows() -> Iterator[Known]:
    """Tests two toy models: the illusory direction is flagged if the test has power, the true one never."""
    toys = (
        ("Makelov's toy", illusion, "blocks.0.mlp.hook_post"),
        ("illusion in the residual stream", illusion_in_residual, "blocks.0.hook_resid_post"),
    )
    for group, make, point in toys:
        for weight in WEIGHTS:
            toy = make(n_pairs=16, weight=weight)
            for name, direction, wrong in (
                ("illusory", toy.illusory, "not illusory"),
                ("true", toy.true, "illusory"),
            ):
                result = interchange(toy.bridge, point, direction, toy.base, toy.source, n_random=1, n_placebo=1)
                yield Known(
                    group,
                    f"irrelevant readings {weight:g}: the {name} direction changes every answer, and is not called {wrong}",
                    f"{_flips(result.inside.flips)}, {result.verdict} ({_parts(result)})",
                    float(result.verdict == wrong) + 1 - result.inside.flips,
                    0.0,
                    "share",
                )


def _path_row() -> Known:
    """Tests an edit that flips the variable, and the two steps of its path to the answer."""
    model = two_steps(n_pairs=16)
    turn = Interchange.along(model.true)
    # Each run is its own source: inside the subspace h becomes -h, which flips the variable.
    turn.take(lambda variable: -variable)
    reft = Reft([(Site("blocks.0.hook_resid_post", First(1)), turn)])
    found = paths(model.bridge, reft, model.base, lambda logits, pair: logits[:, 0] - logits[:, 1], progress=False)
    carried = found.restored().nan_to_num()
    planted = torch.zeros_like(carried)
    names = [(found.rows.index(sender), found.columns.index(receiver)) for sender, receiver in PATH]
    planted[tuple(zip(*names, strict=True))] = 1.0
    return Known(
        "hand-built path",
        "each step of edit->1.0->mlp2->logits carries all of the effect, and no decoy any",
        f"{min(float(carried[place]) for place in names):.3f} at least on the path, {_most_off(carried, names):.3f} at most off it",
        float((carried - planted).abs().max()),
        1e-3,
        "share",
    )


def _most_off(carried: torch.Tensor, path: list[tuple[int, int]]) -> float:
    rest = carried.clone()
    for place in path:
        rest[place] = 0.0
    return float(rest.abs().max())


def _flips(share: float) -> str:
    return f"{share:.0%} changed"


def _parts(result: Interchanged) -> str:
    unread = result.from_unread.moved / result.inside.moved
    return f"{unread:.0%} of it from what is not read, {result.dormant:.0%} by a dormant way"
