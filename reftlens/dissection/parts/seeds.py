"""Would another seed find it? Edits retrained from other seeds, beside edits trained on shuffled answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from reftlens import analysis, plot
from reftlens.dissection.found import Found
from reftlens.dissection.parts.part import BACKWARD, Part, Sizes, Spent, picture, table
from reftlens.dissection.work import Examples, Work
from reftlens.plot.page import Section
from reftlens.results import agreements_to_dataframe
from reftlens.training.seeds import train_seeds


def _agreements(work: Work) -> dict[str, Any]:
    config, examples = work.config, work.training
    if config.retrain is None:
        raise ValueError("no training settings were given: pass DissectConfig(retrain=TrainConfig(...))")
    training = replace(config.retrain, progress=False)
    # A null edit with the seed of a real one would start from the same weights.
    first = 1 + max(config.seed, training.seed, *config.seeds)
    shuffled = _no_majority(examples)
    if not shuffled:
        raise ValueError("all examples have one answer, so there are no shuffled ones to compare with")
    if len(shuffled) < len(examples):
        why = f"{len(shuffled)} of {len(examples)} examples: of more, the commonest answer would stay right for some"
        work.notes.append(("trained on shuffled answers", why))
    null = analysis.null_edits(work.bridge, work.reft, shuffled, training, n=config.n_null_edits, seed=first)
    copies = train_seeds(work.bridge, work.reft, examples, training, seeds=config.seeds)
    pairs = analysis.agreement(
        work.bridge,
        {"this edit": work.reft, **copies},
        work.batches,
        null=null,
        at=config.at,
        n_null=config.n_null,
        seed=config.seed,
    )
    return {"agreements": tuple(pairs)}


def _no_majority(examples: Examples) -> Examples:
    """Drops examples with the commonest answer until every answer can be assigned to an example with another answer."""
    answer, most = Counter(completion for _, completion in examples).most_common(1)[0]
    # Without s of them, most - s must be at most half of the len - s that remain.
    surplus = max(0, 2 * most - len(examples))
    having = [place for place, (_, completion) in enumerate(examples) if completion == answer]
    left = set(having[len(having) - surplus :])
    return [pair for place, pair in enumerate(examples) if place not in left]


def _draw(found: Found) -> Section | None:
    if not found.agreements:
        return None
    return Section(
        SEEDS.heading,
        (
            "Pairs are compared as functions first, then by their strongest write directions; raw R is there to show why it "
            "misleads. The null is edits trained on shuffled answers: p is the part of all pairs with or among them, and this "
            "pair, that are as close. An edit turned to random directions is no null of trained ones.",
        ),
        (
            picture(
                "seeds",
                plot.agreement(found.agreements),
                "Each cell compares two edits, and darker is closer: the cosine of their changes, and the angle between their write directions. The last panel is there to show why raw matrices mislead.",
                found.agreements,
            ),
        ),
        (("Each pair of edits", table([agreements_to_dataframe(found.agreements)])),),
    )


def _cost(sizes: Sizes) -> Spent:
    config = sizes.config
    if config.retrain is None:
        return Spent()
    steps = -(-sizes.training // config.retrain.batch_size) * config.retrain.epochs
    share = config.retrain.batch_size / config.batch_size
    # The base runs once for each training. Then each step runs the cone forward and backward, and
    # each edit is compared.
    training = Spent(steps * share / config.retrain.epochs, cones=steps * share * (1 + BACKWARD))
    edits = len(config.seeds) + config.n_null_edits
    compared = Spent(cones=(2 * edits + 3) * sizes.batches * (1 + sizes.span))
    return sum([training] * edits, compared)


SEEDS = Part(
    name="seeds", heading="Would another seed find it?", compute=_agreements, cost=_cost, draw=_draw, preset="standard"
)
