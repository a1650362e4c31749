"""What do an edit's directions mean? Asks several methods about the same vectors, and corrects for everything looked at.

- "direct": the direct path to the logits, for write directions; the logit lens, for the change at
  real tokens.
- "jacobian": the average linear path to the last layer.
- "patchscope": the model's own next token, when the vector is put into an inspection prompt.
- "dictionary": the features of sparse dictionaries that point the same way, and those that the
  change turns on or off.
- "contexts": the tokens of the prompts where a read direction is largest.

Each reads the edit's vectors, and random vectors in their place. `p` is for the furthest of all
names (tokens, features or contexts) of one method. The corrected p is for the furthest of all
names, vectors and methods. `reftlens benchmark --only readouts` measures on planted meanings what
each method finds and how often it raises a false alarm.

Not evidence of an effect: a name says where a vector points, by a path that each file of
`analysis/readers` describes. Whether the edit acts by it is asked by `ablate`, `mediate` and
`interchange`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import torch
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.decompose import decompose
from reftlens.analysis.engine.dictionary import Dictionary
from reftlens.analysis.readers import contexts, dictionary, direct, jacobian, patchscope
from reftlens.analysis.readers.correction import Scored, corrected
from reftlens.analysis.readers.vectors import Case, Kind, Look, looks_of
from reftlens.bridge import Lens, side_for_ends
from reftlens.cone.shared import sharing
from reftlens.data import Given, as_batches
from reftlens.edit.reft import Reft
from reftlens.numbers import require_whole_number
from reftlens.positions import Positions
from reftlens.results import Meaning

METHODS: dict[str, tuple[tuple[Kind, ...], Callable[[Case, Sequence[Look]], list[Scored]]]] = {
    "direct": (direct.KINDS, direct.direct),
    "jacobian": (jacobian.KINDS, jacobian.jacobian),
    "patchscope": (patchscope.KINDS, patchscope.patchscope),
    "dictionary": (dictionary.KINDS, dictionary.dictionary),
    "contexts": (contexts.KINDS, contexts.contexts),
}
"""Name -> the vectors that it reads, and what reads them."""


@sharing
@torch.no_grad()
def readouts(
    bridge: TransformerBridge,
    reft: Reft,
    prompts: Given,
    *,
    methods: Sequence[str] = ("direct", "jacobian", "patchscope", "contexts"),
    at: Positions | None = None,
    directions: int = 2,
    top: int = 6,
    n_null: int = 200,
    seed: int = 0,
    lens: str | Path | Lens | None = None,
    inspect: str | None = None,
    dictionaries: Sequence[str | Path | Dictionary] = (),
) -> list[Meaning]:
    """Asks several methods what the directions of an edit mean, and what its changes mean.

    Args:
        bridge: the base.
        reft: the edit.
        prompts: texts, conversations, pairs or batches. Directions are weighted by all of them. The
            first eight give the residuals to which directions are added, and the changes that are
            read.
        methods: names from the list above.
        at: use only these edited tokens.
        directions: number of directions per site.
        top: names listed for each vector.
        n_null: sets of random vectors; at least 19, for p of .05.
        seed: seed of the random vectors.
        lens: for "jacobian": a file with a published lens, or a lens; by default one is fitted on
            the first prompts, which takes d_model backward passes of each.
        inspect: for "patchscope": the inspection prompt. Its last token takes the vector. The
            identity prompt of Ghandeharioun et al. 2024 by default.
        dictionaries: for "dictionary": folders in SAELens' format, or dictionaries, at least one
            for each site.

    Returns:
        One result per method and vector. Vectors of a site are in order: write directions, read
        directions, its changes.

    Raises:
        NotAffineError: If an edit is not of the form A h + c.
        ValueError: For an unknown method, or one that cannot read a site of this edit.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods or isinstance(methods, str):
        raise ValueError(f"methods must be a list of {', '.join(METHODS)}, got {methods!r}")
    require_whole_number("n_null", n_null, least=19)
    require_whole_number("directions", directions, least=1)
    require_whole_number("top", top, least=1)
    # With last tokens in one column, the runs of the inspected prompts are narrow.
    batches = as_batches(bridge, prompts, padding_side=side_for_ends(bridge))
    operators = decompose(bridge, reft, batches, at=at)
    options = {"lens": lens, "inspect": inspect, "dictionaries": dictionaries}
    case = Case(bridge, reft, batches, operators, at, directions, top, n_null, seed, options)
    return corrected(operators, scored(case, list(dict.fromkeys(methods))))


def scored(case: Case, methods: Sequence[str]) -> list[Scored]:
    """Returns what methods say, site by site, and there in the order of `Kind`, before any correction.

    Args:
        case: the edit.
        methods: their names.

    Raises:
        ValueError: If one cannot read a site of this edit.
    """
    kinds = list(dict.fromkeys(kind for name in methods for kind in METHODS[name][0]))
    looks = looks_of(case, kinds)
    found = [one for name in methods for one in METHODS[name][1](case, looks)]
    return sorted(found, key=lambda one: (one.look.place, get_args(Kind).index(one.look.kind)))
