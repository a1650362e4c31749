"""Where an edit acts: a named activation point and a rule for the positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from reftlens.positions import Positions, parse


@final
@dataclass(frozen=True)
class Site:
    """An activation point by its TransformerLens name, and the prompt tokens that are edited there.

    >>> Site("blocks.3.hook_resid_post", "l1")
    Site('blocks.3.hook_resid_post', Last(1, half=True))
    """

    hook_name: str
    """For example `blocks.3.hook_resid_post`."""
    positions: Positions
    """A rule such as `First(5) | Last(5)`, or the short form `"f5+l5"`."""

    def __init__(self, hook_name: str, positions: Positions | str) -> None:
        if not isinstance(hook_name, str) or not hook_name:
            raise TypeError(
                f"hook_name must be a TransformerLens hook name such as 'blocks.3.hook_resid_post', got {hook_name!r}"
            )
        object.__setattr__(self, "hook_name", hook_name)
        object.__setattr__(self, "positions", parse(positions))

    def __repr__(self) -> str:
        return f"Site({self.hook_name!r}, {self.positions!r})"
