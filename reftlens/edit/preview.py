"""Shows which tokens of a prompt a rule edits, as text and, in a notebook, as HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from markupsafe import Markup
from transformer_lens.model_bridge import TransformerBridge

from reftlens.data import Prompt, encode, str_tokens
from reftlens.positions import Positions, parse
from reftlens.text import plain

_END, _GAP = 200, " … "
"""Tokens shown at each end of a long prompt, and the placeholder for the rest."""


@final
@dataclass(frozen=True)
class Preview:
    """A prompt's tokens and which of them are edited. Edited tokens print in [brackets]."""

    positions: Positions
    tokens: tuple[str, ...]
    edited: tuple[bool, ...]

    def __repr__(self) -> str:
        marked = (_GAP if place is None else self._marked(place) for place in self._shown())
        return f"{self.positions!r}, {sum(self.edited)} of {len(self.tokens)} tokens: {''.join(marked)}"

    def _marked(self, place: int) -> str:
        return f"[{self.tokens[place]}]" if self.edited[place] else self.tokens[place]

    def _shown(self) -> list[int | None]:
        """Returns the indices of the tokens to show: all, or the two ends of a long prompt with a gap between them."""
        n = len(self.tokens)
        return [*range(n)] if n <= 2 * _END else [*range(_END), None, *range(n - _END, n)]

    def _repr_html_(self) -> str:
        style = "background:#0072b2;color:#fff;border-radius:3px;padding:1px 2px"
        spans = [
            # Markup.format escapes its arguments: tokens are untrusted text.
            Markup(_GAP)
            if place is None
            else Markup('<span title="{}" style="{}">{}</span>').format(
                f"token {place}{': edited' if self.edited[place] else ''}",
                f"white-space:pre;{style if self.edited[place] else ''}",
                plain(self.tokens[place]),
            )
            for place in self._shown()
        ]
        return str(Markup("<div>{}: {}</div>").format(plain(repr(self.positions)), Markup("").join(spans)))


def preview(bridge: TransformerBridge, positions: Positions | str, prompt: Prompt) -> Preview:
    """Shows which tokens of a prompt a rule edits.

    Args:
        bridge: gives the tokenizer.
        positions: a rule, or its short form such as `"f5+l5"`.
        prompt: one text, or a conversation, which is shown as its chat template writes it.

    Raises:
        ValueError: If the rule selects a token that the prompt does not have.
    """
    rule, batch = parse(positions), encode(bridge, [prompt])
    return Preview(rule, str_tokens(bridge, batch.tokens[0]), tuple(rule.mask(batch.prompts)[0].tolist()))
