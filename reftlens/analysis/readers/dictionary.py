"""Dictionaries: which features of a sparse autoencoder or transcoder point where the vector points, and which turn on?

A write or read direction v is compared with each feature's decoder row d by the signed cosine v . d
/ |v| |d|. For real tokens, the score is the mean change of a feature's activation, f(h + delta) -
f(h). The difference itself is not encoded: it lies outside what the dictionary was trained on, and
an encoder that adds a bias and cuts at zero loses its negative parts (Mayne et al. 2024,
arXiv:2411.08790). Where only a transcoder reads the site, its encoder columns take the place of
decoder rows.

Controls: random vectors of the same length. Of the change: reconstruction errors |x - x'| / |x| of
natural and edited states, and the share of the change that the reconstructions explain, 1 - |delta
- (x'(h + delta) - x'(h))|^2 / |delta|^2.

Not evidence of an effect: a dictionary names a direction that nothing reads as well, and its
features are not unique.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.analysis.engine.activations import edited_activations
from reftlens.analysis.engine.dictionary import Dictionary
from reftlens.analysis.engine.dictionary_files import load_dictionary
from reftlens.analysis.readers.correction import Scored
from reftlens.analysis.readers.vectors import Case, Kind, Look
from reftlens.bridge import canonical_hook

KINDS: tuple[Kind, ...] = ("write", "read", "change")
_SETS = 16
"""Random sets whose features are held at a time."""


def dictionary(case: Case, looks: Sequence[Look]) -> list[Scored]:
    """Reads vectors by the dictionaries of their sites.

    Args:
        case: the edit, with the option "dictionaries".
        looks: its directions and changes.

    Raises:
        ValueError: If a site has no dictionary, or one of another width.
    """
    given = case.options.get("dictionaries") or ()
    loaded = [one if isinstance(one, Dictionary) else load_dictionary(Path(one)) for one in given]
    points = [tuple(_canonical(case, name) for name in (one.hook_name, one.hook_name_out)) for one in loaded]
    found = []
    for look in looks:
        where = canonical_hook(case.bridge, case.operators[look.place].hook_name)
        fitting = [(one, names[0] == where) for one, names in zip(loaded, points, strict=True) if where in names]
        if not fitting:
            held = ", ".join(one.hook_name for one in loaded) or "none"
            raise ValueError(
                f"no dictionary is for {case.operators[look.place].where}: pass dictionaries= with one, got {held}"
            )
        for number, (one, encodes) in enumerate(fitting):
            scored = _read(case, look, one, encodes=encodes)
            if scored is not None:
                names = tuple(f"dictionary {number}, {name}" for name in scored.names)
                found.append(scored if len(fitting) == 1 else replace(scored, names=names))
    return found


def _canonical(case: Case, name: str) -> str:
    return canonical_hook(case.bridge, name) if name else ""


def _read(case: Case, look: Look, one: Dictionary, *, encodes: bool) -> Scored | None:
    """Reads one look. `encodes` is whether the site is what the dictionary encodes, rather than what it predicts."""
    autoencodes = encodes and not one.hook_name_out
    # A transcoder's decoder writes to another point than it reads: only the encoder compares here.
    rows = one.decoder if autoencodes or not encodes else one.encoder.T
    width = look.vectors.shape[-1]
    if rows.shape[1] != width:
        raise ValueError(
            f"{one} has rows of width {rows.shape[1]}, but {case.operators[look.place].where} has width {width}"
        )
    if look.states is None:
        units = torch.nn.functional.normalize(rows.double(), dim=-1)
        cosines = torch.nn.functional.normalize(look.vectors[:, 0].double(), dim=-1) @ units.T
        return _scored(case, look, cosines[0].float(), cosines.abs().amax(dim=1), "cosine")
    # What a transcoder predicts is not what it encodes: its features cannot be read from here.
    if not encodes:
        return None
    states, before = look.states, one.encode(look.states)

    def gain(vectors: Float[Tensor, "set token d_model"]) -> Float[Tensor, "set feature"]:
        return torch.cat([(one.encode(states + some) - before).mean(dim=1) for some in vectors.split(_SETS)])

    own = gain(look.vectors[:1])[0]
    # Each part is reduced at once: sets times features would not fit into memory.
    furthest = torch.cat([gain(some).abs().amax(dim=1) for some in look.vectors.split(_SETS)])
    found = _scored(case, look, own, furthest, "change of the activation")
    # Set 0 is the edit's own change; the others are random.
    after = one.encode(states + look.vectors[0])
    listed = (("without the edit", _largest(case, before)), ("with the edit", _largest(case, after)))
    return replace(found, states=listed, controls=_fit(case, look, one, states) if autoencodes else ())


def _scored(case: Case, look: Look, own: Float[Tensor, " feature"], furthest: Tensor, unit: str) -> Scored:
    chosen = own.abs().topk(min(case.top, len(own))).indices
    names = tuple(f"feature {place}" for place in chosen.tolist())
    return Scored(
        "dictionary", look, names, tuple(own[chosen].tolist()), tuple(own[chosen].tolist()), furthest, len(own), unit
    )


def _largest(case: Case, features: Float[Tensor, "token feature"]) -> tuple[str, ...]:
    mean = features.mean(dim=0)
    chosen = mean.topk(min(case.top, len(mean))).indices.tolist()
    return tuple(f"feature {place}" for place in chosen if float(mean[place]) > 0)


def _fit(
    case: Case, look: Look, one: Dictionary, states: Float[Tensor, "token d_model"]
) -> tuple[tuple[str, float], ...]:
    """Returns whether edited states are like those that the dictionary knows, and how much of the change it explains."""
    base = case.reft.scaled(0.0)
    natural = torch.cat([_errors(one, edited_activations(case.bridge, base, b)[look.place][1]) for b in case.batches])
    random = look.vectors[1 : 1 + _SETS]
    return (
        ("reconstruction error, natural states, median", float(natural.median())),
        ("reconstruction error, natural states, 95th percentile", float(natural.quantile(0.95))),
        ("reconstruction error, edited states, median", float(_errors(one, states + look.vectors[0]).median())),
        ("reconstruction error, random changes, median", float(_errors(one, (states + random).flatten(0, 1)).median())),
        ("share of the change explained", _explained(one, states, look.vectors[:1])),
        ("share of random changes explained", _explained(one, states, random)),
    )


def _errors(one: Dictionary, h: Float[Tensor, "token d_model"]) -> Float[Tensor, " token"]:
    h = h.float().cpu()
    return (h - one.reconstruct(h)).norm(dim=-1) / h.norm(dim=-1).clamp(min=1e-12)


def _explained(
    one: Dictionary, states: Float[Tensor, "token d_model"], changes: Float[Tensor, "set token d_model"]
) -> float:
    left = changes - (one.reconstruct(states + changes) - one.reconstruct(states))
    return 1 - float(left.square().sum() / changes.square().sum().clamp(min=1e-30))
