"""The lines of the table for the two hand-made models: a variable that is where it is, and an illusion of one."""

from __future__ import annotations

from collections.abc import Iterator

from reftlens.analysis import interchange
from reftlens.benchmark.handmade import attention_reads_it, illusion
from reftlens.benchmark.known import Known
from reftlens.positions import First
from reftlens.results import Interchanged


def handmade_rows() -> Iterator[Known]:
    """Interchange in a direction that a head reads, and in one that only looks like it."""
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
    toy = illusion()
    for name, direction, wanted in (("illusory", toy.illusory, True), ("true", toy.true, False)):
        result = interchange(toy.bridge, "blocks.0.mlp.hook_post", direction, toy.base, toy.source)
        yield Known(
            "Makelov's toy",
            f"the {name} direction changes every answer, and is {'' if wanted else 'not '}flagged",
            f"{_flips(result.inside.flips)}, {'flagged' if result.illusory else 'not flagged'} ({_parts(result)})",
            float(result.illusory is not wanted) + 1 - result.inside.flips,
            0.0,
            "share",
        )


def _flips(share: float) -> str:
    return f"{share:.0%} changed"


def _parts(result: Interchanged) -> str:
    unread = result.from_unread.moved / result.inside.moved
    return f"{unread:.0%} of it from what is not read"
