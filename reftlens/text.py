"""Makes untrusted text safe to print: escapes terminal commands and changes of the writing direction."""

from __future__ import annotations

import re
from collections.abc import Callable

# Tabs and line feeds stay; a carriage return could overwrite a line of the terminal.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str, *, longest: int | None = None) -> str:
    r"""Escapes the characters that cannot be printed or would change the writing direction.

    Args:
        text: any string, including lone surrogates.
        longest: maximum number of characters; the rest is cut. No limit by default.

    >>> print(plain("a\x1b[1m\u202e\n"), plain("abcdef", longest=4))
    a\x1b[1m\u202e\n abc…
    """
    cut = text if longest is None or len(text) <= longest else text[: longest - 1] + "…"
    return "".join(char if char.isprintable() else _escaped(char) for char in cut)


def harmless(text: str, *, escape: Callable[[str], str] | None = None) -> str:
    r"""Escapes the characters that command a terminal, change the writing direction, or have no UTF-8 form.

    Line breaks, tabs and the invisible characters in scripts and emoji are kept.

    Args:
        text: any string.
        escape: writes such a character; as in a Python string by default.

    >>> print(harmless("a\x1b[1m\u202e"))
    a\x1b[1m\u202e
    """
    return _COMMANDS.sub(lambda found: (escape or _escaped)(found[0]), text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()
