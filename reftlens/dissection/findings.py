"""The sentences that a dissection opens with: eight questions, each answered from the results by a rule.

An answer gives the number and the null beside it. Two fractions count as different if Fisher's exact test, one-sided, gives
p < 0.05 (it takes examples as independent). The largest of many cells counts if it exceeds the control's largest cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb
from typing import NamedTuple

from reftlens.dissection.found import Found
from reftlens.dissection.names import with_short_names
from reftlens.dissection.parts.through import components
from reftlens.plot.labels import spoken
from reftlens.results import (
    Agreement,
    DirectionReadout,
    Finding,
    Identification,
    PatchMap,
    ReadContexts,
    TokenMap,
)
from reftlens.results.finding import Strength

CONTROL = "Random directions"
"""How the control is named: the same change at every token, turned to a random direction."""
SAME = "Not distinguishable from its control: "
"""How an answer begins that is not beyond its null."""
_TURNED = 15.0
"""Degrees beyond which a direction that may turn so far is not the same any more."""
_LEVEL = 0.05
"""Level of the tests."""
_CLOSE = 0.5
"""Difference of two effective ranks below which neither counts as higher."""


class _Answer(NamedTuple):
    answer: str
    null: str
    strength: Strength = "shown"


def findings(found: Found) -> tuple[Finding, ...]:
    """Answers the eight questions, in order.

    Args:
        found: the results of a dissection.
    """
    found = with_short_names(found)
    return tuple(_finding(found, *question) for question in _QUESTIONS)


def _finding(found: Found, question: str, part: str, rule: Callable[[Found], _Answer | None]) -> Finding:
    answer = rule(found)
    if answer is None:
        return Finding(question, _unmeasured(found, part), part, strength="not measured")
    return Finding(question, answer.answer, part, answer.null, answer.strength)


def _unmeasured(found: Found, part: str) -> str:
    reasons = [why for what, why in found.left_out if what == part or what.startswith((f"{part}:", f"{part} at"))]
    if reasons:
        return f"Not measured: {reasons[0]}."
    if part == "seeds":
        return 'Not measured: the edit was trained with one seed (parts=["seeds"] and DissectConfig(retrain=TrainConfig(...)) train more).'
    return f'Not measured (run with parts=["{part}"]).'


def _works(found: Found) -> _Answer | None:
    outcomes = found.outcomes_of("new answer")
    if not outcomes:
        return None
    (outcome, *_) = outcomes
    right = f"the edited model gives the wanted answer in {_of(outcome.edited, outcome.n)} prompts where the base gives another"
    if outcome.longer:
        right += f" (the whole answer in {_of(outcome.edited_whole, outcome.n)})"
    null = f"{CONTROL}: {_of(outcome.control, outcome.n)}."
    if not outcome.edited:
        return _Answer(f"No: {right}.", null, "not distinguishable")
    if not _more(outcome.edited, outcome.control, outcome.n):
        return _Answer(f"{SAME}{right}.", null, "not distinguishable")
    word = "Yes" if outcome.edited >= 0.9 else "Mostly" if outcome.edited > 0.5 else "In part"
    return _Answer(f"{word}: {right}.", null)


def _where(found: Found) -> _Answer | None:
    if found.effect is None or found.effect.control is None:
        return None
    effect, control = found.effect, found.effect.control
    # Of all cells of the control, because the largest of the edit's is what is reported.
    largest = float(control.nan_to_num().abs().max())
    values = effect.values.nan_to_num()
    site, place = divmod(int(values.abs().argmax()), values.shape[1])
    beyond, cells = int((values.abs() > largest).sum()), int(effect.values.isfinite().sum())
    null = f"{CONTROL}: {_part(effect, float(control[site, place]))} in that cell, and at most {_part(effect, largest)} in any."
    most = (
        f"{effect.rows[site]} at {_position(effect, place)} gives {_part(effect, float(values[site, place]))} by itself"
    )
    if not beyond:
        return _Answer(f"{SAME}of {cells} cells, the strongest, {most}.", null, "not distinguishable")
    answer = f"The edit of {most}. Of {cells} cells (one site at one token), {beyond} exceed every cell of the control."
    return _Answer(f"{answer}{_strongest_site(found)}", null)


def _position(effect: TokenMap, place: int) -> str:
    """A role, such as the last token, where prompts have different tokens."""
    label = effect.labels[place]
    return f"token {label!r}" if label == effect.tokens[place] else f"the {label.strip('[]')}"


def _strongest_site(found: Found) -> str:
    ablation = found.ablation
    if ablation is None or len(ablation.sites) < 2:
        return ""
    best = int(ablation.shapley.argmax())
    share = f"{float(ablation.shapley[best]):.1f} of {ablation.whole:.1f} nats"
    return f" Split between whole sites (Shapley values), {ablation.sites[best]} has the largest part: {share}."


def _part(effect: TokenMap, value: float) -> str:
    """The value of a cell with its unit: a part of the whole effect, unless that is too small to divide by."""
    return f"{value:.0%} of the effect" if "/ effect of the whole edit" in effect.quantity else f"{value:+.2f} nats"


def _through(found: Found) -> _Answer | None:
    maps = [result for result in (found.heads, found.mlps) if result is not None]
    if not maps:
        return None
    gap, spread = _effect_of(maps[0])
    if not abs(gap) > 2 * spread:
        return _Answer(
            f"{SAME}the whole effect on these prompts is {gap:+.2f} nats, within two standard errors of 0.",
            f"Standard error: {spread:.2f} nats.",
            "not distinguishable",
        )
    carrying = components(found.heads, found.mlps)
    largest = max(abs(control) for _, _, control in carrying)
    beyond = [(name, value) for name, value, _ in carrying if abs(value) > largest]
    direct = None if found.direct is None else float(found.direct.mean()) / gap
    straight = (
        ""
        if direct is None
        else f" With every head and MLP held as in the base, {direct:.0%} remains (direct effect). These shares need not add up."
    )
    null = f"{CONTROL}: at most {largest:.0%} for any head or MLP."
    if not beyond:
        (name, value, _) = carrying[0]
        answer = f"{SAME}of {len(carrying)} heads and MLPs after the first edit, {spoken(name)} carries most, {value:.0%} of the effect.{straight}"
        return _Answer(answer, null, "not distinguishable")
    named = ", ".join(f"{spoken(name)} ({value:.0%})" for name, value in beyond[:3])
    answer = (
        f"The whole effect is {gap:+.1f} nats. Of the {len(carrying)} heads and MLPs after the first edit, {len(beyond)} each carry a larger "
        f"share of it than any does in the control. Strongest, each measured alone: {named}.{straight}"
    )
    return _Answer(answer, null)


def _effect_of(result: PatchMap) -> tuple[float, float]:
    """The effect of the whole edit, and its standard error over examples."""
    effect = result.source - result.base
    # One example has no spread, so its effect cannot be told from 0.
    spread = float(effect.std()) / len(effect) ** 0.5 if len(effect) > 1 else float("inf")
    return float(effect.mean()), spread


def _directions(found: Found) -> _Answer | None:
    pairs = found.beside_untrained()
    if not pairs:
        return None
    shown = [f"{operator.effective_rank:.1f} of {len(operator.write)} at {operator.where}" for operator, _ in pairs[:2]]
    more = f" (and {len(pairs) - 2} more sites)" if len(pairs) > 2 else ""
    beside = " and ".join("none" if fresh is None else f"{fresh.effective_rank:.1f}" for _, fresh in pairs[:2])
    null = f"Effective rank of a newly initialised edit of the same shape: {beside}."
    used = f"the effective rank is {' and '.join(shown)}{more}"
    identified = f" {_identified(found)}"
    compared = [abs(one.effective_rank - fresh.effective_rank) for one, fresh in pairs if fresh is not None]
    if compared and max(compared) < _CLOSE:
        return _Answer(f"{SAME}{used}.{identified}", null, "not distinguishable")
    return _Answer(f"{used[0].upper()}{used[1:]}.{identified}", null)


def _identified(found: Found) -> str:
    """How far outputs determine the directions, by turning them, and what retrained edits say about them."""
    said = [_turned(found.identified), _retrained(found.agreements, alone=found.identified is None)]
    return " ".join(sentence for sentence in said if sentence)


def _turned(identified: Identification | None) -> str:
    """How far the strongest write direction may turn for the tolerance: as walked, with the held-out KL beside."""
    if identified is None:
        return ""
    # Reversed, because the last one stays: the turn of the strongest direction.
    turns = {turn.toward: turn for turn in reversed(identified.of("write"))}
    if not {"stiffest", "freest"} <= turns.keys():
        return ""
    stiff, free = turns["stiffest"], turns["freest"]
    verdict = (
        "is not identified"
        if stiff.degrees > _TURNED
        else "is identified in part"
        if free.degrees > _TURNED
        else "is identified"
    )
    return (
        f"The strongest write direction of {stiff.site} {verdict}: a turn of it that moves the outputs by {identified.eps:g} nats (KL "
        f"divergence; {free.held_out_kl:.2g} on held-out prompts) is {stiff.degrees:.0f} degrees where they change soonest, and "
        f"{'at least ' * free.free}{free.degrees:.0f} where they change latest."
    )


def _retrained(agreements: tuple[Agreement, ...], *, alone: bool) -> str:
    """What retrained edits say about the directions. Edits that do something else say nothing."""
    # The same bound as `Agreement.not_identified`.
    same = [pair for pair in agreements if pair.kl < 0.1 * pair.control_kl]
    if not agreements:
        unknown = "Whether they are identified (would training find the same ones again?) is not known: the edit was trained once."
        return unknown if alone else ""
    if not same:
        least = min(pair.kl for pair in agreements)
        return f"Whether they are identified is not known: no retrained edit does the same (KL divergence {least:.2g} nats or more)."
    worst = max(same, key=lambda pair: pair.angle)
    if worst.not_identified:
        return f"They are not identified: another seed does nearly the same with directions {worst.angle:.0f} degrees off (chance {worst.null_angle:.0f})."
    return f"Seeds that do the same agree on them within {worst.angle:.0f} degrees (chance {worst.null_angle:.0f})."


def _reads(found: Found) -> _Answer | None:
    if not found.readouts and not found.contexts:
        return None
    told = (
        [_written(readout) for readout in found.readouts],
        [_wanted(readout) for readout in found.readouts if readout.p_all],
        [_read(contexts) for contexts in found.contexts],
    )
    written, wanted, read = (max(one, key=lambda item: item.ratio, default=None) for one in told)
    strongest = [one for one in (written, wanted, read) if one is not None]
    if not any(one.ratio > 1 for one in strongest):
        answer = "no token is raised, lowered or read by a direction further than by random directions."
        return _Answer(f"{SAME}{answer}", " ".join(one.chance for one in strongest), "not distinguishable")
    said = [one for one in strongest if one.ratio > 1]
    sentences = [one.sentence for one in said]
    if written is not None and written not in said:
        sentences.append("Searched over the whole vocabulary, no token is moved beyond chance.")
    if read is not None and read not in said:
        sentences.append(f"No direction reads any token beyond chance; {_largest(found.contexts)}.")
        said.append(read)
    return _Answer(" ".join(sentences), " ".join(one.chance for one in said))


class _Told(NamedTuple):
    """The strongest of one kind of number."""

    ratio: float
    """1 at the edge of what chance gives."""
    sentence: str
    chance: str


def _largest(contexts: Sequence[ReadContexts]) -> str:
    first = max((context for one in contexts for context in one.contexts), key=lambda context: context.z)
    return f"the strongest reading is of {first.tokens[first.position]!r} ({first.z:.1f} standard deviations)"


def _wanted(readout: DirectionReadout) -> _Told:
    """The same of the wanted answers: 0.05 / p, corrected for all of them in all directions."""
    (token, change, _), p = min(zip(readout.watched, readout.p_all, strict=True), key=lambda item: item[1])
    verb = "raises" if change > 0 else "lowers"
    sentence = f"Direction {readout.direction} of {readout.where} {verb} the logit of the wanted {token!r} by {abs(change):.1f} directly."
    return _Told(0.05 / p, sentence, f"For {token!r}: p = {p:.2g}, corrected for all wanted answers and directions.")


def _written(readout: DirectionReadout) -> _Told:
    """How far beyond its band the strongest token of a direction is (1: at its edge), and sentences on both."""
    sides = [
        (token, change, change / readout.null_high if readout.null_high > 0 else 0.0)
        for token, change in readout.promoted[:1]
    ]
    sides += [
        (token, change, change / readout.null_low if readout.null_low < 0 else 0.0)
        for token, change in readout.suppressed[:1]
    ]
    band = f"{CONTROL}: {readout.null_low:.1f} to {readout.null_high:.1f} over all tokens."
    if not sides:
        return _Told(0.0, "", band)
    token, change, ratio = max(sides, key=lambda side: side[2])
    verb = "raises" if change > 0 else "lowers"
    return _Told(
        ratio,
        f"Direction {readout.direction} of {readout.where} {verb} the logit of {token!r} by {abs(change):.1f} directly.",
        band,
    )


def _read(contexts: ReadContexts) -> _Told:
    chance = f"What a direction reads: random directions reach {contexts.null_high:.1f} standard deviations."
    if not contexts.contexts:
        return _Told(0.0, "", chance)
    first = max(contexts.contexts, key=lambda context: context.z)
    ratio = first.z / contexts.null_high if contexts.null_high > 0 else 0.0
    token = first.tokens[first.position]
    return _Told(
        ratio,
        f"Direction {contexts.direction} of {contexts.where} moves furthest at {token!r} ({first.z:.1f} standard deviations).",
        chance,
    )


def _else(found: Found) -> _Answer | None:
    outcomes = found.outcomes_of("old answer")
    if not outcomes:
        return None
    (outcome, *_) = outcomes
    changed, by_chance = 1 - outcome.edited, 1 - outcome.control
    what = f"{_of(changed, outcome.n)} answers that should stay are changed (mean KL divergence {outcome.kl:.2g} nats)"
    null = f"{CONTROL}: {_of(by_chance, outcome.n)}."
    if not changed:
        return _Answer(
            f"None of the {outcome.n} answers that should stay is changed (mean KL divergence {outcome.kl:.2g} nats).",
            null,
        )
    p = _p_more(changed, by_chance, outcome.n)
    if not p < _LEVEL:
        return _Answer(
            f"{what}. That is not distinguishable from its control (p = {p:.2g}).", null, "not distinguishable"
        )
    return _Answer(f"{what}.", null)


def _natural(found: Found) -> _Answer | None:
    if not found.manifolds:
        return None
    worst = max(found.manifolds, key=lambda site: site.beyond()[1] - site.beyond()[0])
    natural, edited, control = worst.beyond()
    n = len(worst.edited)
    what = f"{edited:.0%} of edited tokens at {worst.where} are further from the mean than 95% of natural activations (Mahalanobis distance)"
    others = ", ".join(f"{site.beyond()[1]:.0%} at {site.where}" for site in found.manifolds if site is not worst)
    what += f", and {others}" if others else ""
    beside = "" if _more(edited, control, n) else ", and not distinguishable from random changes"
    null = f"Unedited tokens: {natural:.0%}, where 5% is expected. {CONTROL}: {control:.0%}."
    # Also twice the 5%, because with many tokens even a small excess is significant.
    if _more(natural, 0.05, n) and natural > 0.1:
        return _Answer(
            f"Not known: {what}. But so are {natural:.0%} of unedited ones, where 5% is expected.",
            null,
            "not distinguishable",
        )
    if not _more(edited, natural, n):
        return _Answer(f"Not distinguishable from natural ones: {what}.", null, "not distinguishable")
    return _Answer(f"Less than unedited ones{beside}: {what}.", null)


def _seeds(found: Found) -> _Answer | None:
    pairs = [pair for pair in found.agreements if "this edit" in (pair.first, pair.second)]
    if not pairs:
        return None
    worst = min(pairs, key=lambda pair: pair.cosine)
    what = f"changes of edits retrained from {len(pairs)} other seed{'s' * (len(pairs) > 1)} have a cosine of {worst.cosine:.2f} or more with its changes"
    if not worst.n_null_edits:
        return _Answer(
            f"Not known: {what}, and nothing to compare that with was trained.",
            f"{CONTROL}: {worst.control_cosine:.2f}.",
            "not distinguishable",
        )
    # The largest p, because the sentence is about all of these pairs.
    p = max(pair.p_cosine for pair in pairs)
    null = f"Trained on shuffled answers: {worst.null_cosine:.2f}, p = {p:.2g} (smallest possible {1 / worst.n_null_pairs:.2g})."
    if not p < 0.05:
        return _Answer(f"{SAME}{what}.", null, "not distinguishable")
    return _Answer(f"Closer than chance: {what}.", null)


def _of(share: float, n: int) -> str:
    """A fraction as a count.

    >>> _of(0.5, 24)
    '12 of 24'
    """
    return "an unknown number" if share != share else f"{round(share * n)} of {n}"


def _more(first: float, second: float, n: int) -> bool:
    """Whether one fraction of n exceeds another: Fisher's exact test, one-sided, p < 0.05. NaN exceeds nothing.

    >>> _more(1.0, 0.0, 2), _more(1.0, 0.0, 4)
    (False, True)
    """
    return _p_more(first, second, n) < _LEVEL


def _p_more(first: float, second: float, n: int) -> float:
    """The p value of that test; 1 if a fraction is unknown."""
    if first != first or second != second:
        return 1.0
    a, b = round(first * n), round(second * n)
    # P(X >= a) of the hypergeometric distribution: a + b hits fall on two groups of n at random.
    return sum(comb(n, k) * comb(n, a + b - k) for k in range(a, min(n, a + b) + 1)) / comb(2 * n, a + b)


_QUESTIONS: tuple[tuple[str, str, Callable[[Found], _Answer | None]], ...] = (
    ("Does it work?", "works", _works),
    ("Where does it act?", "where", _where),
    ("Through what?", "through", _through),
    ("How many directions does it use, and are they identified?", "directions", _directions),
    ("What do they read and write?", "reads", _reads),
    ("What else changes?", "else", _else),
    ("How natural are the edited states?", "natural", _natural),
    ("Would another seed find it?", "seeds", _seeds),
)
"""Question, name of the part that answers it, and the rule."""
