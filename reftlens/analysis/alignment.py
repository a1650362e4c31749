"""Does a subspace store a variable of a causal model? Swaps it between runs, and trains it with its controls.

accuracy = share of held-out pairs (base, source) for which the model gives the label under h +
R^T(Rs - Rh), the base's answer after the causal model's variable was set to its value in the source
(interchange-intervention accuracy; Geiger et al. 2021, arXiv:2106.02997). `align` trains the
subspace (`objectives.Interchange`) and these controls with the same settings:

- arbitrary labels: the same pairs with random labels, scored on random labels of the held-out
  pairs. What it reaches above chance it has memorised.
- a random model of the same form: what training reaches if the model computes nothing.

`alignment` scores a subspace that is given. Both compare it with random subspaces of the same rank,
the whole activation, swapping nothing, and the majority label.

Not evidence of the variable by itself: pairs that no other hypothesis answers differently
(`Counterfactual.separates`) cannot tell it from that hypothesis, and a subspace may act through a
path that is dormant in natural runs (`shares`). Sites are linear subspaces. Nonlinear alignment
maps reach 100% on random models (Sutter et al. 2025, arXiv:2507.08802).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.controls.retraining import random_model
from reftlens.analysis.engine.swap_runs import Among, SwapRuns, random_subspaces, whole_activation, widths
from reftlens.analysis.interchange import interchange
from reftlens.data import encode
from reftlens.data.counterfactual import Counterfactual, arbitrary_labels, as_counterfactuals
from reftlens.edit.reft import Reft
from reftlens.edit.untrained import untrained
from reftlens.interventions import SourceIntervention
from reftlens.numbers import seeds_of_draws
from reftlens.results import Alignment, Interchanged
from reftlens.results.alignments import ARBITRARY, BLANK
from reftlens.training.objectives import Interchange, Objective
from reftlens.training.train import TrainConfig, train

_LEAST_PAIRS = 8
"""Pairs below which the shares through read and unread parts are not computed."""


def alignment(
    bridge: TransformerBridge,
    reft: Reft,
    held_out: Sequence[Counterfactual | tuple[str, ...]],
    *,
    among: Among = "all tokens",
    n_random: int = 20,
    shares: bool = True,
    batch_size: int = 64,
    seed: int = 0,
) -> Alignment:
    """Scores given interchanges, such as `Interchange.along(directions(operator, 2))` for the directions of an edit.

    Args:
        bridge: the model, unedited.
        reft: interchanges at their sites.
        held_out: pairs that the subspace was not fitted to: `Counterfactual`s, or tuples of their
            fields.
        among: "labels" compares only tokens that occur in labels, so that the accuracy of guessing
            is 1 / number of labels even for a model that would say something else.
        n_random: random subspaces of the same rank.
        shares: also measure the effect through what is read and what is not, for a single site of
            one token.
        batch_size: pairs in one forward pass.
        seed: seed of the random subspaces.

    Raises:
        ValueError: If there are no pairs, or the interchanges cannot swap their variables.
    """
    pairs = as_counterfactuals(held_out, "held_out")
    runs = SwapRuns(bridge, reft, pairs, among=among, batch_size=batch_size)
    draws = [runs.right(random_subspaces(reft, seed=one)) for one in seeds_of_draws(seed, n_random)]
    return Alignment(
        sites=reft.site_names,
        widths=widths(reft),
        variables=tuple(pair.variable for pair in pairs),
        labels=tuple(pair.label for pair in pairs),
        changes=torch.tensor([float(pair.changes) if pair.base_label else float("nan") for pair in pairs]),
        right=runs.right(reft),
        nothing=runs.right(None),
        whole=runs.right(whole_activation(reft)),
        random=torch.stack(draws),
        shares=_shares(bridge, reft, pairs, batch_size, seed) if shares else {},
    )


def align(
    bridge: TransformerBridge,
    reft: Reft,
    examples: Sequence[Counterfactual | tuple[str, ...]],
    held_out: Sequence[Counterfactual | tuple[str, ...]],
    config: TrainConfig = TrainConfig(),
    *,
    objective: Objective | None = None,
    controls: bool = True,
    among: Among = "all tokens",
    n_random: int = 20,
    shares: bool = True,
    batch_size: int = 64,
    seed: int = 0,
) -> Alignment:
    """Trains interchanges in place, trains their controls with the same settings, and scores all of them.

    Args:
        bridge: the frozen base.
        reft: untrained interchanges at their sites; changed in place.
        examples: pairs to train on: `Counterfactual`s, or tuples of their fields.
        held_out: other pairs to score on.
        config: settings of each training.
        objective: the loss; `objectives.Interchange` of the pairs' variables by default. Controls
            have the default, since arbitrary labels have no distribution to match.
        controls: whether to train the two controls.
        among: as for `alignment`.
        n_random: as for `alignment`.
        shares: as for `alignment`.
        batch_size: pairs in one forward pass of scoring.
        seed: seed of the controls and random subspaces.

    Raises:
        ValueError: As `train`, `objectives.Interchange` and `alignment`.
    """
    pairs, others = as_counterfactuals(examples), as_counterfactuals(held_out, "held_out")
    names = sorted({name for pair in (*pairs, *others) for name in pair.variable.split("+")})
    usual = Interchange(names)
    # Before training: the control must start where the alignment does not depend on it.
    copies = [untrained(reft, seed=seed + 1), untrained(reft, seed=seed + 2)]
    train(bridge, reft, pairs, config, objective=usual if objective is None else objective)
    trained = SwapRuns(bridge, reft, pairs, among=among, batch_size=batch_size).right(reft)
    found: dict[str, torch.Tensor] = {}
    if controls:
        labelled = [arbitrary_labels(part, seed=seed) for part in (pairs, others)]
        arms = {ARBITRARY: (bridge, *labelled), BLANK: (random_model(bridge, seed=seed), pairs, others)}
        for (name, (model, known, unseen)), copy in zip(arms.items(), copies, strict=True):
            train(model, copy, known, config, objective=usual)
            found[name] = SwapRuns(model, copy, unseen, among=among, batch_size=batch_size).right(copy)
    scored = alignment(
        bridge, reft, others, among=among, n_random=n_random, shares=shares, batch_size=batch_size, seed=seed
    )
    return replace(scored, trained=float(trained.mean()), controls=found)


def null_alignments(
    bridge: TransformerBridge,
    reft: Reft,
    examples: Sequence[Counterfactual | tuple[str, ...]],
    config: TrainConfig = TrainConfig(),
    *,
    n: int = 19,
    seed: int = 1000,
) -> list[Reft]:
    """Trains interchanges on arbitrary labels from other initialisations: the null of `overlap` for found subspaces.

    Args:
        bridge: the frozen base.
        reft: gives sites, classes and ranks; not changed.
        examples: the pairs of the real alignment.
        config: the same settings.
        n: number of null alignments. The smallest possible p is 1 / (n + 1).
        seed: seed of the first; the others use the next integers.
    """
    pairs = as_counterfactuals(examples)
    objective = Interchange(sorted({name for pair in pairs for name in pair.variable.split("+")}))
    made = []
    for number in range(seed, seed + n):
        copy = untrained(reft, seed=number)
        train(
            bridge,
            copy,
            arbitrary_labels(pairs, seed=number),
            replace(config, seed=number),
            objective=objective,
        )
        made.append(copy)
    return made


def _shares(
    bridge: TransformerBridge, reft: Reft, pairs: Sequence[Counterfactual], batch_size: int, seed: int
) -> dict[str, Interchanged]:
    """Splits each variable's effect on pairs that should give the source's answer. Empty where that cannot be asked."""
    ((site, intervention), *more) = list(reft)
    assert isinstance(intervention, SourceIntervention), "SwapRuns required it"
    found: dict[str, Interchanged] = {}
    for name in dict.fromkeys(pair.variable for pair in pairs):
        asked = [p for p in pairs if p.variable == name and p.changes and p.label == p.source_label]
        # `interchange` swaps one subspace at one token, and names no variables.
        if more or site.head is not None or "+" in name or len(asked) < _LEAST_PAIRS:
            continue
        rows = intervention.subspace(name if intervention.parts else None).float()
        base, source = (encode(bridge, texts) for texts in ([p.base for p in asked], [p.source for p in asked]))
        one_token = all(bool((site.positions.mask(b.prompts).sum(dim=1) == 1).all()) for b in (base, source))
        if one_token and len(rows):
            found[name] = interchange(
                bridge, site.hook_name, rows, base, source,
                at=site.positions, n_random=1, n_placebo=1, batch_size=batch_size, seed=seed,
            )  # fmt: skip
    return found
