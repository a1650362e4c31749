"""Converts pairs of site and intervention to plain JSON values and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, final

import torch
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import canonical_hook, width_of
from reftlens.edit.site import Site, site_names
from reftlens.interventions import FAMILY, Intervention
from reftlens.interventions.check import require_kind
from reftlens.positions import from_spec, require_loadable

_MOST_SITES = 8192
"""Maximum number of sites. One site per head of a model with 80 layers of 64 heads makes 5120."""


@final
@dataclass(frozen=True, eq=False)
class Pairs:
    """The contents of a `Reft`."""

    sites: tuple[Site, ...]
    interventions: tuple[Intervention, ...]
    """Each intervention once, in the order in which sites first use it."""
    which: tuple[int, ...]
    """Index of each site's intervention."""
    names: tuple[str, ...]
    """One name per site."""
    scales: Mapping[str, float]

    @property
    def edits(self) -> list[tuple[Site, Intervention]]:
        """Returns the pairs in order. A shared intervention is one object."""
        return [(site, self.interventions[index]) for site, index in zip(self.sites, self.which, strict=True)]

    def lines(self) -> list[dict[str, str]]:
        """Returns one row per site in words: where it is, its intervention, and its number of parameters."""
        lines = []
        shown = site_names(self.sites, self.names)
        for name, short, site, index in zip(self.names, shown, self.sites, self.which, strict=True):
            edit = self.interventions[index]
            settings = ", ".join(f"{key}={value}" for key, value in edit.settings().items())
            shared = self.which.count(index) > 1
            lines.append(
                {
                    "name": name,
                    "site": f"{short} ({site.hook_name}{'' if site.head is None else f', head {site.head}'})",
                    "tokens": repr(site.positions),
                    "edit": f"{type(edit).__name__}({settings})",
                    "scale": f"{self.scales.get(name, 1.0):g}",
                    "trained numbers": f"{edit.n_parameters():,}{' (shared)' * shared}",
                }
            )
        return lines


def to_document(pairs: Pairs, bridge: TransformerBridge) -> dict[str, Any]:
    """Converts the pairs to plain JSON values.

    Raises:
        ValueError: If the model lacks one of the sites, or the saved edit could not be loaded
            again.
    """
    # Before the folder is touched: an unreadable edit must not replace a readable one.
    require_savable(pairs.sites, pairs.interventions)
    return {
        "sites": [
            {
                # Both names: loading checks that the alias still means the same point.
                "hook_name": canonical_hook(bridge, site.hook_name),
                "alias": site.hook_name,
                "positions": site.positions.spec(),
                "head": site.head,
            }
            for site in pairs.sites
        ],
        "interventions": [{"kind": edit.kind, "settings": edit.settings()} for edit in pairs.interventions],
        "which": list(pairs.which),
        "names": list(pairs.names),
        "scales": dict(pairs.scales),
    }


def require_savable(sites: Sequence[Site], interventions: Sequence[Intervention]) -> None:
    """Raises if an edit could not be loaded again after saving.

    Args:
        sites: those of the edit.
        interventions: those of the edit.

    Raises:
        ValueError: If a custom position rule is not registered, or a class does not have a name.
    """
    for rule in dict.fromkeys(site.positions for site in sites):
        require_loadable(rule)
    for kind in dict.fromkeys(type(edit) for edit in interventions):
        # Shipped classes are known to the loader; others must have a name of their own.
        if kind not in FAMILY:
            require_kind(kind)


def from_document(config: Mapping[str, Any], bridge: TransformerBridge, family: Sequence[type[Intervention]]) -> Pairs:
    """Builds the pairs that a config describes, with interventions on the meta device, which allocates no memory.

    Args:
        config: of a saved edit.
        bridge: the model that the edit is loaded for.
        family: classes that the config may name.

    Raises:
        ValueError: If the config names a class or a site that does not exist, or is inconsistent.
    """
    try:
        if len(config["sites"]) > _MOST_SITES:
            raise ValueError(f"it has {len(config['sites']):,} sites, more than the limit of {_MOST_SITES:,}")
        sites = tuple(_site(saved, bridge) for saved in config["sites"])
        kinds = {member.kind: member for member in family}
        which, names, scales = tuple(config["which"]), tuple(config["names"]), config["scales"]
        _check_sharing(which, n_sites=len(sites), n_interventions=len(config["interventions"]))
        _check_names(names, scales, n_sites=len(sites))
        # Many sites are heads of one point, and each query of the bridge takes a millisecond.
        width_at = cache(lambda hook_name, head: width_of(bridge, hook_name, head))
        widths: dict[int, int] = {}
        for site, index in zip(sites, which, strict=True):
            width = width_at(site.hook_name, site.head)
            if widths.setdefault(index, width) != width:
                raise ValueError(
                    f"{site!r} has width {width}, but another site of the same edit has width {widths[index]}"
                )
        interventions = tuple(
            _intervention(saved, kinds, widths[index]) for index, saved in enumerate(config["interventions"])
        )
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, OverflowError) as error:
        said = f"{error!s} is missing or unknown" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"the edit is damaged or its kind is unknown: {said:.500}") from error
    return Pairs(sites, interventions, which, names, scales)


def _site(saved: Mapping[str, Any], bridge: TransformerBridge) -> Site:
    canonical = canonical_hook(bridge, saved["alias"])
    if canonical != saved["hook_name"]:
        raise ValueError(
            f"the hook name {saved['alias']!r:.80} was saved as {saved['hook_name']!r:.80}, but is {canonical!r} on this model"
        )
    return Site(saved["alias"], from_spec(saved["positions"]), saved.get("head"))


def _intervention(saved: Mapping[str, Any], kinds: Mapping[str, type[Intervention]], width: int) -> Intervention:
    settings = saved["settings"]
    # Checked before construction, so that no setting can allocate more than the model's width
    # squared.
    if settings["d_model"] != width:
        raise ValueError(f"an edit has width {settings['d_model']!r:.80}, but its site on this model has width {width}")
    if saved["kind"] not in kinds:
        raise ValueError(
            f"Unknown kind {saved['kind']!r:.80}. Known kinds: {', '.join(kinds):.500}. To load your own class, register it "
            "with @rl.register or pass family=[..., YourClass]; on the command line, pass --import its_module"
        )
    with torch.device("meta"):
        return kinds[saved["kind"]](**settings)


def _check_sharing(which: Sequence[object], *, n_sites: int, n_interventions: int) -> None:
    if len(which) != n_sites or any(type(index) is not int for index in which):
        raise ValueError(
            f"'which' must have the index of an intervention for each of {n_sites} sites, got {len(which)} entries"
        )
    # The order that Reft itself makes, so the same edit always has the same tensor names.
    if list(dict.fromkeys(which)) != list(range(n_interventions)):
        raise ValueError(f"the sites must use all {n_interventions} interventions, in order of first use")


def _check_names(names: Sequence[object], scales: object, *, n_sites: int) -> None:
    if len(names) != n_sites or not all(isinstance(name, str) for name in names):
        raise ValueError(f"'names' must have a string for each of {n_sites} sites")
    if not isinstance(scales, dict) or not all(type(s) in (int, float) and math.isfinite(s) for s in scales.values()):
        raise ValueError("'scales' must map names to finite numbers")
    if not set(scales) <= set(names):
        raise ValueError("'scales' must only have keys from 'names'")
