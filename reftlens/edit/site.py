"""A site: the named activation point and the position rule where an edit acts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import pandas as pd

from reftlens.display import as_html
from reftlens.positions import Positions, parse


@final
@dataclass(frozen=True)
class Site:
    """An activation point by its TransformerLens name, with the rule for the prompt tokens that are edited there.

    >>> Site("blocks.3.hook_resid_post", "l1")
    Site('blocks.3.hook_resid_post', Last(1, half=True))
    >>> Site("blocks.3.attn.hook_z", "l1", head=2)
    Site('blocks.3.attn.hook_z', Last(1, half=True), head=2)
    """

    hook_name: str
    """For example `blocks.3.hook_resid_post`."""
    positions: Positions
    """A rule such as `First(5) | Last(5)`, or the short form `"f5+l5"`."""
    head: int | None
    """The edited head of activations `[batch, pos, head, d_head]`; None edits all heads as one flattened vector."""

    def __init__(self, hook_name: str, positions: Positions | str, head: int | None = None) -> None:
        if not isinstance(hook_name, str) or not hook_name:
            raise TypeError(
                f"hook_name must be a TransformerLens hook name such as 'blocks.3.hook_resid_post', got {hook_name!r}"
            )
        if head is not None and (isinstance(head, bool) or not isinstance(head, int) or head < 0):
            raise ValueError(f"head must be None or the index of a head, 0 or more, got {head!r}")
        # The dataclass is frozen, and its own __init__ would not parse the short form.
        object.__setattr__(self, "hook_name", hook_name)
        object.__setattr__(self, "positions", parse(positions))
        object.__setattr__(self, "head", head)

    @property
    def name(self) -> str:
        """A short name of the block, point, head and tokens.

        >>> Site("blocks.3.hook_resid_post", "f2+l2").name
        'L3 resid_post @ f2 + l2'
        """
        head = "" if self.head is None else f" head {self.head}"
        return f"{_point(self.hook_name)}{head} @ {self.positions.short}"

    def _repr_html_(self) -> str:
        """Shows the point, and which tokens of a short and a long prompt are edited there."""
        return as_html(f"{self!r}, in short {self.name}\n{self.positions.sketch()}", pd.DataFrame)

    def __repr__(self) -> str:
        head = "" if self.head is None else f", head={self.head}"
        return f"Site({self.hook_name!r}, {self.positions!r}{head})"


def _point(hook_name: str) -> str:
    """`blocks.3.hook_resid_post` -> `L3 resid_post`."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_name)
    where, point = (f"L{block[1]} ", block[2]) if block else ("", hook_name)
    return where + point.replace("hook_", "")


def site_names(sites: Sequence[Site], parts: Sequence[str]) -> tuple[str, ...]:
    """Returns a unique name for each site of an edit.

    Args:
        sites: those of an edit, in order.
        parts: each site's name in `Reft.only` and `Reft.without`; shown unless it is the default,
            "edit".
    """
    plain = set(parts) == {"edit"}
    names = [site.name if plain else f"{part}: {site.name}" for site, part in zip(sites, parts, strict=True)]
    counts = Counter(names)
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        # Two edits may act at one site, and results go by these names.
        unique.append(f"{name} #{seen[name]}" if counts[name] > 1 else name)
    return tuple(unique)
