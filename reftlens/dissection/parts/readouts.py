"""What do several methods say about its directions and its changes? With one correction for all of them."""

from __future__ import annotations

from typing import Any

from reftlens import plot
from reftlens.analysis.readers.correction import Scored, corrected
from reftlens.analysis.readers.jacobian import FITTED_ON
from reftlens.analysis.readers.vectors import READ_AT, Case, Kind, looks_of
from reftlens.analysis.readouts import METHODS
from reftlens.dissection.found import Found
from reftlens.dissection.parts.part import BACKWARD, Part, Sizes, Spent, picture, table
from reftlens.dissection.work import Work
from reftlens.plot.page import Section


def _readouts(work: Work) -> dict[str, Any]:
    config = work.config
    methods = [name for name in METHODS if name != "dictionary" or config.dictionaries]
    options = {"lens": config.lens, "inspect": config.inspect, "dictionaries": config.dictionaries}
    case = Case(
        work.bridge,
        work.reft,
        work.batches,
        work.operators,
        config.at,
        config.directions,
        6,
        # With fewer than 19 sets p cannot reach .05.
        max(config.n_null, 19),
        config.seed,
        options,
    )
    kinds: dict[Kind, None] = dict.fromkeys(kind for name in methods for kind in METHODS[name][0])
    # All methods read the same random vectors, so that what they say can be corrected together.
    looks = looks_of(case, list(kinds)) if work.operators else []
    said: list[Scored] = []
    for name in methods if looks else ():
        try:
            said += METHODS[name][1](case, looks)
        except ValueError as error:
            work.left_out.append((f"readouts: {name}", str(error)))
    return {"meanings": tuple(corrected(work.operators, said))}


def _draw(found: Found) -> Section | None:
    if not found.meanings:
        return None
    beside = [meaning.beside_to_dataframe() for meaning in found.meanings if meaning.controls or meaning.states]
    tables = [("What each method says", table([meaning.to_dataframe() for meaning in found.meanings]))]
    tables += [("Controls, and what methods say about whole activations", table(beside))] if beside else []
    return Section(
        READOUTS.heading,
        (
            "Several methods read the same vectors: through the unembedding (direct), through the average linear path to the last "
            "layer (jacobian), by the model itself on a prompt that asks (patchscope), by a sparse dictionary, and at the "
            "examples where a reading is largest (contexts). A name says where a vector points. It is no evidence that the edit "
            "acts by it. p counts all names, vectors and methods that were looked at.",
        ),
        (
            picture(
                "meanings", plot.meanings(found.meanings), "The largest readings of each method.", found.meanings[:4]
            ),
        ),
        tuple(tables),
    )


def _cost(sizes: Sizes) -> Spent:
    config = sizes.config
    sets = max(config.n_null, 19) + 1
    vectors = sizes.sites * sets * (config.directions + 1) * READ_AT
    # The lens takes d_model backward passes of each text, if it is not given.
    fit = 0.0 if config.lens else FITTED_ON * sizes.width * BACKWARD / config.batch_size
    asked = sizes.sites * sets * (config.directions + READ_AT) / max(1.0, sizes.cone) / config.batch_size
    return Spent(6 * sizes.batches + fit, cones=asked, readouts=5 * vectors, bytes_held=12 * sizes.width**2)


READOUTS = Part(
    name="readouts",
    heading="What do several methods say its directions mean?",
    compute=_readouts,
    cost=_cost,
    draw=_draw,
    preset="full",
    needs=("directions",),
)
