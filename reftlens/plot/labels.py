"""Makes text safe to draw: tokens with visible whitespace, and short hook names.

Tokens may contain `$`, tags, control characters, marks that change the direction of writing, and
characters that the font lacks. A figure must identify the token and must not fail on it.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Sequence
from functools import cache

from matplotlib.font_manager import FontProperties, findfont, get_font

FONT = "DejaVu Sans"
"""Comes with matplotlib, so a figure looks the same everywhere, and its missing glyphs are known."""

SPACE, NEWLINE, TAB = "·", "⏎", "⇥"
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_SITE = re.compile(r"L(\d+) (.+ @ .+)")
_PLAIN = re.compile(r"layer (\d+)")
_BETWEEN = {"hook_resid_pre": "before", "hook_resid_post": "after"}
"""Where the residual stream is, beside its layer."""
_LONGEST_SITE = 48
_SPECIAL = re.compile(r"(<\|\w{3})\w{3,}(\|>\*?)")


def visible(token: str) -> str:
    r"""The token with whitespace as marks, and with what has no shape of its own as an escape.

    >>> print(visible(" Upper\n"), visible("a\x07b"))
    ·Upper⏎ a\x07b
    """
    return "".join(_marks(token))


def drawn_token(token: str, *, longest: int = 18) -> str:
    r"""The token for a figure: as `visible`, also without glyphs that the font lacks, and cut to about `longest`.

    >>> print(drawn_token(" Tower"), drawn_token("上"), drawn_token("<|a very long special token|>"))
    ·Tower \u4e0a <|a·very·long·spe…
    """
    shown = [_with_glyph(mark) for mark in _marks(token)]
    if sum(map(len, shown)) <= longest:
        return "".join(shown)
    # Whole characters are kept: half an escape would name another character.
    while sum(map(len, shown)) >= longest:
        shown.pop()
    return "".join(shown) + "…"


def drawn(text: str) -> str:
    """Prose for a figure: spaces and line breaks stay, the rest as in `drawn_token`."""
    return "".join(char if char in " \n" else _with_glyph(_shown(char)) for char in text)


def wrap(text: str, *, width: float, size: float) -> str:
    """Breaks a line of prose to `width` inches at a font size in points."""
    # A letter of this font is about 0.56 of its size wide, on average.
    per_line = max(12, int(width * 72 / (size * 0.56)))
    return "\n".join(textwrap.wrap(drawn(" ".join(text.split())), per_line))


def shortened(token: str) -> str:
    """A special token of drawn text without its middle, since rotated it would take the room of the figure.

    >>> shortened("<|endoftext|>"), shortened("<|begin_of_text|>*"), shortened("<s>"), shortened("·Tower")
    ('<|end…|>', '<|beg…|>*', '<s>', '·Tower')
    """
    special = _SPECIAL.fullmatch(token)
    return token if special is None else f"{special[1]}…{special[2]}"


def is_role(label: str) -> bool:
    """Whether the label of a column is a role, such as `[last subject]`, rather than a token.

    >>> is_role("[last subject]"), is_role("[CLS]"), is_role(" [")
    (True, False, False)
    """
    return label.startswith("[") and label.endswith("]") and " " in label


def star(tokens: Sequence[str], starred: Sequence[bool]) -> list[str]:
    """Drawn tokens, or the roles that stand for them, those of the subject with a star behind."""
    return [
        (drawn(token) if is_role(token) else drawn_token(token)) + "*" * mark
        for token, mark in zip(tokens, starred, strict=True)
    ]


def short_name(hook_name: str) -> str:
    """A hook name as a reader says it; a site's own short name stays.

    >>> short_name("blocks.3.hook_resid_post"), short_name("blocks.0.attn.hook_z")
    ('3 resid_post', '0 attn.z')
    >>> short_name("L3 resid_post @ first 2"), short_name("layer 3")
    ('L3 resid_post @ first 2', 'layer 3')
    """
    if " @ " in hook_name or hook_name.startswith("layer "):
        shown = drawn(" ".join(hook_name.split()))
        return shown if len(shown) <= _LONGEST_SITE else shown[: _LONGEST_SITE - 1] + "…"
    block = _BLOCK.fullmatch(hook_name)
    if block is None:
        return drawn_token(hook_name, longest=24)
    return f"{block[1]} {drawn_token(block[2].replace('hook_', ''), longest=24)}"


def component(hook_name: str) -> str:
    """What writes at a point, as the literature has it: `mlp3`, `attn3`, and `3` for the heads of block 3.

    >>> component("blocks.3.hook_mlp_out"), component("blocks.3.attn.hook_z"), component("edit")
    ('mlp3', '3', 'edit')
    """
    block = _BLOCK.fullmatch(hook_name)
    kinds = {"hook_mlp_out": "mlp", "hook_attn_out": "attn", "attn.hook_z": ""}
    if block is None or block[2] not in kinds:
        return short_name(hook_name)
    return kinds[block[2]] + block[1]


def short_rows(rows: Sequence[str]) -> tuple[list[str], str]:
    """Tick labels for rows, and the label of their axis: the kind of hook is said once if all rows share it.

    >>> short_rows(["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"])
    (['0', '1'], 'layer (mlp_out)')
    >>> short_rows(["L1 resid_post @ all", "L4 resid_post @ all"])
    (['1', '4'], 'layer (resid_post @ all)')
    """
    layers_only = [_PLAIN.fullmatch(row) for row in rows]
    if rows and all(layers_only):
        return [layer[1] for layer in layers_only if layer], "layer"
    sites = [_SITE.fullmatch(row) for row in rows]
    if sites and all(sites) and len({site[2] for site in sites if site}) == 1:
        return [site[1] for site in sites if site], f"layer ({short_name(rows[0]).split(maxsplit=1)[1]})"
    blocks = [_BLOCK.fullmatch(row) for row in rows]
    kinds = {block[2] if block else None for block in blocks}
    if len(kinds) == 1 and None not in kinds:
        layers = [block[1] for block in blocks if block]
        return layers, f"layer ({short_name(rows[0]).split(maxsplit=1)[1]})"
    return [short_name(row) for row in rows], "site"


def row_names(rows: Sequence[str]) -> tuple[str, ...]:
    """Rows of a table: a layer alone, if all are the same output of one, and its place for states between layers.

    >>> row_names(["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"])
    ('layer 0', 'layer 1')
    >>> row_names(["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post"])
    ('before layer 0', 'after layer 0')
    >>> row_names(["blocks.0.hook_mlp_out", "L4 resid_post @ all"])
    ('0 mlp_out', 'L4 resid_post @ all')
    """
    blocks = [_BLOCK.fullmatch(row) for row in rows]
    kinds = {block[2] if block else "" for block in blocks}
    if kinds <= set(_BETWEEN):
        return tuple(f"{_BETWEEN[block[2]]} layer {block[1]}" for block in blocks if block)
    if len(kinds) == 1 and kinds <= {"hook_mlp_out", "hook_attn_out", "attn.hook_z"}:
        return tuple(f"layer {block[1]}" for block in blocks if block)
    return tuple(short_name(row) for row in rows)


def spoken(component: str) -> str:
    """A component of `mediate` or `paths` as a sentence names it.

    >>> spoken("2.1"), spoken("mlp5"), spoken("edit"), spoken("logits")
    ('layer 2 head 1', 'layer 5 MLP', 'the edit', 'the logits')
    """
    layer, _, head = component.partition(".")
    if component in ("edit", "logits"):
        return f"the {component}"
    if layer.isdecimal() and head.isdecimal():
        return f"layer {layer} head {head}"
    mlp = component.removeprefix("mlp")
    return f"layer {mlp} MLP" if mlp.isdecimal() else component


def _shown(char: str) -> str:
    r"""One character, or what stands for it: " " -> "·", a control character -> "\x07"."""
    marks = {" ": SPACE, "\n": NEWLINE, "\t": TAB}
    if char in marks:
        return marks[char]
    # C* are controls, turns of direction, surrogates and unassigned ones; Z* the other kinds of
    # space.
    if unicodedata.category(char)[0] in "CZ":
        return char.encode("unicode_escape").decode()
    return char


def _marks(token: str) -> list[str]:
    """What stands for each character; a combining mark without a letter gets a dotted circle to sit on."""
    shown = [_shown(char) for char in token]
    alone = [place == 0 or shown[place - 1] != token[place - 1] for place in range(len(token))]
    return [
        "◌" + mark if bare and unicodedata.combining(char) else mark
        for char, mark, bare in zip(token, shown, alone, strict=True)
    ]


def _with_glyph(text: str) -> str:
    if all(ord(char) in _glyphs() for char in text):
        return text
    return text.removeprefix("◌").encode("unicode_escape").decode()


@cache
def _glyphs() -> frozenset[int]:
    """Code points that the regular and the bold face both draw."""
    faces = (get_font(findfont(FontProperties(family=FONT, weight=weight))) for weight in ("normal", "bold"))
    regular, bold = (frozenset(face.get_charmap()) for face in faces)
    return regular & bold
