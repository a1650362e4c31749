"""Which tokens would a rule edit in this prompt? As text and, in a notebook, as HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from markupsafe import Markup
from transformer_lens.model_bridge import TransformerBridge

from reftlens.data import encode, str_tokens
from reftlens.positions import Positions, parse


@final
@dataclass(frozen=True)
class Preview:
    """A prompt's tokens and which of them are edited. Prints edited tokens in [brackets]."""

    positions: Positions
    tokens: tuple[str, ...]
    edited: tuple[bool, ...]

    def __repr__(self) -> str:
        marked = (f"[{token}]" if edited else token for token, edited in zip(self.tokens, self.edited, strict=True))
        return f"{self.positions!r}, {sum(self.edited)} of {len(self.tokens)} tokens: {''.join(marked)}"

    def _repr_html_(self) -> str:
        style = "background:#0072b2;color:#fff;border-radius:3px;padding:1px 2px"
        spans = [
            Markup('<span title="{}" style="{}">{}</span>').format(
                f"token {place}{': edited' if edited else ''}", f"white-space:pre;{style if edited else ''}", token
            )
            for place, (token, edited) in enumerate(zip(self.tokens, self.edited, strict=True))
        ]
        return str(Markup("<div>{}: {}</div>").format(repr(self.positions), Markup("").join(spans)))


def preview(bridge: TransformerBridge, positions: Positions | str, prompt: str) -> Preview:
    """Shows which tokens of a prompt a rule edits.

    Args:
        bridge: gives the tokenizer.
        positions: a rule, or its short form such as `"f5+l5"`.
        prompt: one text.

    Raises:
        ValueError: if the rule wants a token that the prompt does not have.
    """
    rule, batch = parse(positions), encode(bridge, [prompt])
    return Preview(rule, str_tokens(bridge, batch.tokens[0]), tuple(rule.mask(batch.prompts)[0].tolist()))
