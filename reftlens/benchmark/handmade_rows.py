"""Rows of the table for the hand-made models: a true variable, an illusion of one, and routes of an edit."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from reftlens.analysis import channels, graph, interchange, paths
from reftlens.benchmark.handmade import (
    Handmade,
    attention_reads_it,
    attention_turns,
    illusion,
    illusion_in_residual,
    two_steps,
)
from reftlens.benchmark.known import Known
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.interventions import Interchange
from reftlens.positions import First, Last, Positions
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
    yield from route_rows()


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


def route_rows() -> Iterator[Known]:
    """Follows edits that turn a direction round: through a head's values, through its pattern, and along a path of two steps."""
    # Turned round, a direction keeps its length, so nothing leaks through LayerNorm.
    for group, model, where, share in (
        ("hand-built values", attention_reads_it(n_pairs=16), First(1), 1.0),
        ("hand-built pattern", attention_turns(n_pairs=16), Last(1), 0.0),
    ):
        split = channels(model.bridge, _turning(model, where), model.base, _difference, progress=False).edit
        found = split.frozen / split.whole
        yield Known(
            group,
            f"with attention patterns frozen, {share:.0%} of the effect stays",
            f"{abs(float(found.mean())):.3f} of it on average",
            float((found - share).abs().max()),
            1e-3,
            "share",
        )
    model = two_steps(n_pairs=16)
    reft = _turning(model, First(1))
    yield _path_row(model, reft)
    one = graph(model.bridge, reft, model.base, _difference, progress=False).edit
    edges = one.pruned(0.999)
    planted = {("e0.0@0", "1.0@4"), ("1.0@4", "mlp2@4"), ("mlp2@4", "answer")}
    kept = one.faithfulness()[next(n for n, some in enumerate(one.kept_edges) if len(some) == len(edges))]
    wrong = len(planted ^ {(edge.source, edge.target) for edge in edges})
    yield Known(
        "hand-built path",
        "the graph of the edit is the path, and alone has all of the effect",
        f"{len(edges)} edges, {wrong} wrong; {float(kept):.3f} of it alone",
        wrong + abs(float(kept) - 1),
        1e-3,
        "share",
    )


def _turning(model: Handmade, where: Positions) -> Reft:
    turn = Interchange.along(model.true)
    # Each run is its own source: inside the subspace h becomes -h.
    turn.take(lambda variable: -variable)
    return Reft([(Site("blocks.0.hook_resid_post", where), turn)])


def _difference(logits: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
    return logits[:, 0] - logits[:, 1]


def _path_row(model: Handmade, reft: Reft) -> Known:
    """Tests the two steps of the path of an edit to the answer."""
    found = paths(model.bridge, reft, model.base, _difference, progress=False)
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
