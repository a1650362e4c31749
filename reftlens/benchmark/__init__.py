"""Known answers: truths planted in models, and what the analyses make of them, as one table with its misses.

    reftlens benchmark                     # all of it, minutes
    reftlens benchmark --only handmade

Importing this package does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reftlens.benchmark.known import Known

PARTS = ("handmade", "sites", "planted", "equality", "nulls")
"""What `run` can be asked for."""


def run(parts: tuple[str, ...] = PARTS) -> Iterator[Known]:
    """The table's lines, as they are found.

    Raises:
        ValueError: for a part that there is not.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"there is no part {', '.join(unknown)}: the parts are {', '.join(PARTS)}")
    from reftlens.benchmark.equality import equality_rows
    from reftlens.benchmark.handmade_rows import handmade_rows
    from reftlens.benchmark.models import MODELS
    from reftlens.benchmark.nulls import null_rows
    from reftlens.benchmark.planted import planted_rows
    from reftlens.benchmark.sites import site_rows

    if "handmade" in parts:
        yield from handmade_rows()
    if "sites" in parts:
        for model in ("facts-small", "random gpt2"):
            yield from site_rows(model)
    if "planted" in parts:
        for model in MODELS:
            yield from planted_rows(model)
    if "equality" in parts:
        yield from equality_rows()
    if "nulls" in parts:
        yield from null_rows()
