"""Results as cells in rows and columns, of the mean and of each prompt: what a page shows as a table that answers.

A prompt brings its own columns where these are its tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from reftlens.plot.labels import is_role, row_names, short_name, spoken, visible
from reftlens.results import Interchanged, PatchMap, ReftMap, Swap, TokenMap

Mapped = TokenMap | PatchMap | ReftMap
"""Results that are maps."""

_MOST_PROMPTS = 40
_MARK = re.compile(r"<.*>|\[.*\]", flags=re.DOTALL)
"""A special token, such as the beginning of a text."""
_LONGEST_PROMPT = 70
_TOWARDS = {
    "edited into base": "part of the effect that this carries",
    "base into edited": "part of the effect that is lost without this",
    "denoise": "part of the way to the clean run",
    "noise": "part of the way to the corrupted run",
}
"""What `restored` is a part of, by the direction of patching."""


@final
@dataclass(frozen=True, eq=False)
class View:
    """What one choice of the reader shows: the mean, or one prompt."""

    name: str
    columns: tuple[str, ...]
    values: Float[Tensor, "rows columns"]
    """NaN where there is nothing to measure."""
    control: Float[Tensor, "rows columns"] | None
    """NaN where a cell has none."""


@final
@dataclass(frozen=True, eq=False)
class Cells:
    """A map, ready to be shown."""

    rows: tuple[str, ...]
    """The first stands at the bottom, as in a figure."""
    views: tuple[View, ...]
    """The mean first."""
    quantity: str
    control_name: str
    column: str = ""
    """What stands before the name of a column in a sentence, such as "token "."""
    choice: str = "prompt"
    """What the reader chooses from."""
    starred: bool = False
    """Whether a star at a column means the subject of the prompt."""

    @property
    def limit(self) -> float:
        """The largest finite magnitude of all that is shown, so that everything has one scale; 1 if there is none."""
        shown = [part for view in self.views for part in (view.values, view.control) if part is not None]
        return max([_furthest(part) for part in shown], default=0.0) or 1.0


def cells_of(result: Mapped | Cells) -> Cells:
    """Returns the cells of a map.

    Args:
        result: the map; cells stay as they are.
    """
    if isinstance(result, Cells):
        return result
    if isinstance(result, ReftMap):
        return _of_trained(result)
    if isinstance(result, TokenMap):
        return _of_tokens(result)
    return (
        _of_tokens(result.to_token_map(quantity=_TOWARDS[result.direction]))
        if result.axes[-1] == "pos"
        else _of_components(result)
    )


def interchanges(results: Sequence[Interchanged]) -> Cells:
    """Returns how far each interchange moves the answer: a column for each site, and a choice of pairs where they were kept.

    Args:
        results: from `analysis.interchange`, one for each site.
    """
    # A choice of the reader is one pair for all columns, so all sites must have the same pairs.
    kept = results[0].pairs if all(one.pairs == results[0].pairs and _has_pairs(one) for one in results) else ()
    columns = tuple(short_name(one.where) for one in results)
    n = len(results[0].random)
    views = [View(f"mean of {results[0].n} pairs", columns, *_moved(results, None))]
    views += [
        View(f"{place + 1}: {text_of(source)} → {text_of(base)}", columns, *_moved(results, place))
        for place, (base, source) in enumerate(kept[:_MOST_PROMPTS])
    ]
    return Cells(
        rows=tuple(name for name, _ in reversed(_swaps(results[0]))),
        views=tuple(views),
        quantity="part of the way from the base prompt's answer to the source's",
        control_name=f"the furthest of {n} random subspaces of the same rank",
        choice="pair",
    )


def _swaps(result: Interchanged) -> list[tuple[str, Swap]]:
    return [
        ("inside the directions", result.inside),
        ("inside, by what is read", result.from_read),
        ("inside, by what is not read", result.from_unread),
        ("everything else", result.complement),
        ("the whole activation", result.whole),
    ]


def _has_pairs(result: Interchanged) -> bool:
    swaps = [*(swap for _, swap in _swaps(result)), *result.random]
    # Results of earlier versions do not have the values of single pairs.
    return bool(result.pairs) and all(len(swap.each) == len(result.pairs) for swap in swaps)


def _moved(results: Sequence[Interchanged], place: int | None) -> tuple[Tensor, Tensor]:
    """Values and control of one pair, or of the mean. Only what is inside has a control: subspaces of its rank."""

    def of(swap: Swap) -> float:
        return swap.moved if place is None else swap.each[place]

    values = torch.tensor([[of(swap) for _, swap in reversed(_swaps(one))] for one in results]).T
    control = torch.full_like(values, torch.nan)
    # Rows are reversed, so the last is "inside", of which the random subspaces are the control.
    control[-1] = torch.tensor([max((of(swap) for swap in one.random), key=abs, default=torch.nan) for one in results])
    return values, control


def _of_tokens(result: TokenMap) -> Cells:
    def starred(tokens: Sequence[str]) -> tuple[str, ...]:
        return tuple(_named(token) + "*" * star for token, star in zip(tokens, result.starred, strict=True))

    views = [View(_mean(result.n_prompts), starred(result.labels), result.values, result.control)]
    if result.each is not None and len(result.prompts) > 1:
        views += _by_prompt(result.prompts, [starred(one) for one in result.prompts], result.each, result.each_control)
    return Cells(
        rows=row_names(result.rows),
        views=tuple(views),
        quantity=result.quantity,
        control_name=result.control_name,
        column="token ",
        starred=any(result.starred),
    )


def _of_components(result: PatchMap) -> Cells:
    """Heads by layer, or senders by receiver: the columns of all prompts are the same."""
    heads = result.axes == ("layer", "head")
    columns = tuple(f"head {one}" if heads else f"to {spoken(one)}" for one in result.columns)
    control = None if result.control is None else result.restored(result.control)
    views = [View(_mean(len(result.values)), columns, result.restored(), control)]
    if len(result.prompts) > 1:
        each_control = None if result.control is None else result.restored_each(result.control)
        # By the mean gap, so that the prompts average to the first view.
        views += _by_prompt(result.prompts, [columns] * len(result.prompts), result.restored_each(), each_control)
    return Cells(
        rows=row_names(result.rows) if heads else tuple(f"from {spoken(one)}" for one in result.rows),
        views=tuple(views),
        quantity=_TOWARDS[result.direction],
        control_name=result.control_name,
    )


def _of_trained(result: ReftMap) -> Cells:
    each, control = (
        rearrange(part - result.base, "row column prompt -> prompt row column")
        for part in (result.held_out, result.control)
    )
    views = [View(f"mean of {len(each)} held-out prompts", result.columns, result.gain(), result.control_gain())]
    if len(each) > 1:
        views += [
            View(f"held-out prompt {place + 1}", result.columns, *parts)
            for place, parts in enumerate(zip(each[:_MOST_PROMPTS], control[:_MOST_PROMPTS], strict=True))
        ]
    return Cells(
        rows=row_names(result.rows),
        views=tuple(views),
        quantity=f"gain in {result.score} of an edit trained in this cell",
        control_name="edits trained on shuffled answers",
    )


def _by_prompt(
    prompts: Sequence[Sequence[str]],
    columns: Sequence[tuple[str, ...]],
    values: Float[Tensor, "prompt rows columns"],
    control: Float[Tensor, "prompt rows columns"] | None,
) -> list[View]:
    beside = [None] * len(prompts) if control is None else list(control)
    lines = list(zip(prompts, columns, values, beside, strict=True))[:_MOST_PROMPTS]
    return [
        View(f"{place}: {text_of(tokens)}", names, *parts)
        for place, (tokens, names, *parts) in enumerate(lines, start=1)
    ]


def _mean(n: int) -> str:
    return "one prompt" if n == 1 else f"mean of {n} prompts"


def _named(token: str) -> str:
    """A role stays as it reads; a token shows its spaces."""
    return token if is_role(token) else visible(token)


def text_of(tokens: Sequence[str]) -> str:
    """A prompt as it reads, without padding and without a token that only marks its beginning, cut where it is long.

    Args:
        tokens: of the prompt, with `(place)` at a place without one.
    """
    there = [token for place, token in enumerate(tokens) if token != f"({place})"]
    words = "".join(there[1:] if there and _MARK.fullmatch(there[0]) else there)
    shown = visible(words).replace("·", " ").strip() or "prompt"
    return shown if len(shown) <= _LONGEST_PROMPT else shown[: _LONGEST_PROMPT - 1] + "…"


def _furthest(values: Tensor) -> float:
    found = values[values.isfinite()]
    return float(found.abs().max()) if len(found) else 0.0
