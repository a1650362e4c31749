"""The names of an edit's sites where they stand together: what all of them share is left out, and said once in the settings.

L1 resid_post @ all, L4 resid_post @ all             layer 1, layer 4
L4 resid_post @ first 2, L4 resid_post @ last 1      layer 4 @ first 2, layer 4 @ last 1
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from reftlens.dissection.found import Found

T = TypeVar("T")

_SITE = re.compile(r"L(\d+) (\S+)(?: head (\d+))? @ (.+)")
_NAMED = frozenset({"site", "sites", "rows", "first", "second", "left_out"})
"""The fields of results that hold names of sites. Others may hold the same letters, as text of a prompt."""


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Returns full name -> the name without what all of them share; empty if one of them is not the name of a site in a layer.

    Args:
        names: unique names, from `Reft.site_names`.
    """
    found = [_SITE.fullmatch(name) for name in names]
    parts = [match.groups() for match in found if match]
    if not parts or len(parts) < len(names):
        return {}
    varied = [len({part[place] for part in parts}) > 1 for place in range(4)]
    return {name: _shown(part, varied) for name, part in zip(names, parts, strict=True)}


def _shown(part: Sequence[str | None], varied: Sequence[bool]) -> str:
    layer, point, head, positions = part
    shown = f"layer {layer}"
    if varied[1]:
        shown += f" {point}"
    if varied[2] and head is not None:
        shown += f" head {head}"
    return f"{shown} @ {positions}" if varied[3] else shown


def names_in(found: Found) -> dict[str, str]:
    """Returns full name -> short name of the sites in these results.

    Args:
        found: the results of a dissection.
    """
    of_sites = (found.operators, found.manifolds, found.interchanges, found.readouts, found.projections)
    names = [one.site for results in of_sites for one in results if one.site]
    names += [] if found.ablation is None else found.ablation.sites
    names += [row for one in (found.effect, found.sizes) if one is not None for row in one.rows]
    return short_names(list(dict.fromkeys(names)))


def with_short_names(found: Found) -> Found:
    """Returns the results with the short names of their sites, for sentences, tables and figures that stand together.

    Args:
        found: the results of a dissection.
    """
    names = names_in(found)
    if not names:
        return found
    # A longer name first: one may begin with another.
    any_of = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    # Not inside a longer word: "last 1" also begins "last 12".
    pattern = re.compile(rf"(?:{any_of})(?!\w)")
    return _renamed(found, lambda text: pattern.sub(lambda match: names[match[0]], text), named=False)


def _renamed(value: T, rename: Any, *, named: bool) -> T:
    result: Any = value
    if isinstance(value, str):
        result = rename(value) if named else value
    elif isinstance(value, tuple):
        result = tuple(_renamed(item, rename, named=named) for item in value)
    elif is_dataclass(value) and not isinstance(value, type):
        inside = {item.name: getattr(value, item.name) for item in fields(value)}
        new = {name: _renamed(item, rename, named=name in _NAMED) for name, item in inside.items()}
        result = replace(value, **new)
    return result
