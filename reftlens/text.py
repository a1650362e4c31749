"""Texts from anywhere, made visible: none commands a terminal or turns the direction of writing."""

from __future__ import annotations

import re

_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str, *, longest: int | None = None) -> str:
    r"""The text with what cannot be printed, or would turn the direction of writing, as escapes.

    Args:
        text: any string, lone surrogates included.
        longest: characters to keep, if it is to be cut.

    >>> print(plain("a\x1b[1m\u202e\n"), plain("abcdef", longest=4))
    a\x1b[1m\u202e\n abc…
    """
    cut = text if longest is None or len(text) <= longest else text[: longest - 1] + "…"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in cut)


def harmless(text: str) -> str:
    r"""The text with what would command a terminal, turn the direction of writing, or has no UTF-8 form as escapes.

    Line breaks, tabs and the invisible parts of scripts and emoji stay.

    Args:
        text: any string.

    >>> print(harmless("a\x1b[1m\u202e"))
    a\x1b[1m\u202e
    """
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
