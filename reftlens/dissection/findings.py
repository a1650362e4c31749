"""The sentences that a dissection opens with: eight questions, each answered from the results by a rule.

An answer gives the number; the null beside it gives what it is compared with. Two fractions count
as different if Fisher's exact test, one-sided, gives p < 0.05 (it takes examples as independent).
The largest of many cells counts if it exceeds the control's largest cell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import comb, isfinite
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
    Turn,
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
_NAMED = 3
"""How many cells or components a sentence names."""
_ORDER = ("strongest", "second strongest", "third strongest")
_MORE_SEEDS = 'dissect(..., DissectConfig(parts=["seeds"], retrain=TrainConfig(...)))'


class _Answer(NamedTuple):
    answer: str
    null: str
    strength: Strength = "shown"
    code: str = ""


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
        answer = _unmeasured(found, part)
    return Finding(question, answer.answer, part, answer.null, answer.strength, answer.code)


def _unmeasured(found: Found, part: str) -> _Answer:
    reasons = [why for what, why in found.left_out if what == part or what.startswith((f"{part}:", f"{part} at"))]
    if reasons:
        return _Answer(f"Not measured: {reasons[0]}.", "", "not measured")
    if part == "seeds":
        why = "There is one training seed, so nothing above is known to hold for another. To train more:"
        return _Answer(f"Not measured. {why}", "", "not measured", _MORE_SEEDS)
    return _Answer("Not measured. To measure it:", "", "not measured", f'dissect(..., DissectConfig(parts=["{part}"]))')


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
    n_cells = int(effect.values.isfinite().sum())
    draws = _draws(effect.control_name)
    null = f"{CONTROL}{draws}: {_whole_by_chance(found)}{_cell_by_chance(effect, float(control[site, place]), largest)}"
    strongest = f"{effect.rows[site]} at {_position(effect, place)}"
    share = f"{_part(effect, float(values[site, place]))}{' of that' * bool(_whole(effect))}"
    start = _moved_by(effect)
    if not values[site, place].abs() > largest:
        answer = f"{SAME}{start}Of {n_cells} cells (one site at one token), the strongest, {strongest}, gives {share} by itself."
        return _Answer(answer, f"{null}.", "not distinguishable")
    beyond = sorted(
        (values.abs() > largest).nonzero().tolist(), key=lambda cell: -float(values[cell[0], cell[1]].abs())
    )
    shares, beside = _largest_site(found)
    answer = f"{start}{strongest[0].upper()}{strongest[1:]} gives {share} by itself.{_more_cells(effect, beyond[1:], n_cells)}{shares}"
    return _Answer(answer, f"{null}{beside}.")


def _moved_by(effect: TokenMap) -> str:
    """What the whole edit does, of which cells are shares."""
    whole = re.match(r"[+-][0-9.]+", _whole(effect))
    if whole is None:
        return ""
    n, change = effect.n_prompts, float(whole[0])
    over = f"mean of {n} prompts" if n > 1 else "one prompt"
    return f"The whole edit {_verb(change)} the logit of the wanted answer beside that of the base's answer by {abs(change):.1f} nats ({over}). "


def _whole(effect: TokenMap) -> str:
    """The effect of the whole edit with its unit, which the map names where it divides by it; empty elsewhere."""
    found = re.search(r"/ effect of the whole edit \(([^)]*)\)", effect.quantity)
    return found[1] if found else ""


def _draws(control_name: str) -> str:
    """How many draws a control is the mean of, where its name says so.

    >>> _draws("the same change turned to random directions, mean of 4"), _draws("others")
    (' (mean of 4 draws)', '')
    """
    found = re.search(r"mean of (\d+)$", control_name)
    return f" (mean of {found[1]} draws)" if found else ""


def _whole_by_chance(found: Found) -> str:
    ablation = found.ablation
    return (
        ""
        if ablation is None or not isfinite(ablation.control_whole)
        else f"{ablation.control_whole:+.1f} nats in all, "
    )


def _cell_by_chance(effect: TokenMap, there: float, largest: float) -> str:
    same = f"{_part(effect, there)} in that cell"
    return (
        f"{same}, which is also their highest"
        if abs(there) == largest
        else f"{same} and at most {_part(effect, largest)} in any"
    )


def _cell(effect: TokenMap, site: int, place: int, value: float, unit: str) -> str:
    return f"{effect.rows[site]} at {_position(effect, place)} ({_part(effect, value)}{unit})"


def _more_cells(effect: TokenMap, cells: Sequence[Sequence[int]], n_cells: int) -> str:
    """Names the further cells beyond the control."""
    beside = f"of the {n_cells} cells (one site at one token) exceed every cell of the control"
    if not cells:
        return f" No other {beside.replace('exceed', 'exceeds')}."
    named = [_cell(effect, site, place, float(effect.values[site, place]), "") for site, place in cells[:_NAMED]]
    roles = any(effect.labels[place] != effect.tokens[place] for _, place in cells[:_NAMED])
    words = " A token's number counts from 0; prompts have different words there." if roles else ""
    more = ", ..." * (len(cells) > _NAMED)
    return f" {len(cells)} more {beside}: {', '.join(named)}{more}.{words}"


def _position(effect: TokenMap, place: int) -> str:
    """A role, such as the last token, where prompts have different tokens."""
    label = effect.labels[place]
    if label == effect.tokens[place]:
        return f"token {label!r}"
    role = label.strip("[]")
    return role if role.startswith("token ") else f"the {role}"


def _largest_site(found: Found) -> tuple[str, str]:
    """Which site has the largest Shapley value, and the same of the control."""
    ablation = found.ablation
    if ablation is None or len(ablation.sites) < 2:
        return "", ""
    best = int(ablation.shapley.argmax())
    largest = "larger" if len(ablation.sites) == 2 else "largest"
    share = f"{float(ablation.shapley[best]):.1f} of {ablation.whole:.1f} nats"
    said = f" Split between whole sites (Shapley values), {ablation.sites[best]} has the {largest} part: {share}."
    if ablation.control_shapley is None:
        return said, f"; {float(ablation.control[best]):+.1f} nats for {ablation.sites[best]} alone"
    return said, f"; {float(ablation.control_shapley[best]):+.1f} nats as the part of {ablation.sites[best]}"


def _part(effect: TokenMap, value: float) -> str:
    """The value of a cell with its unit: a part of the whole effect, unless that is too small to divide by."""
    return f"{value:.0%}" if _whole(effect) else f"{value:+.2f} nats"


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
    # Of components before the edit, patches change nothing: they cannot carry its effect, and are
    # not counted.
    carrying = [one for one in components(found.heads, found.mlps) if max(abs(one[1]), abs(one[2])) > _ROUNDING]
    if not carrying:
        return _Answer(f"{SAME}no head and no MLP carries any of the effect.", "", "not distinguishable")
    largest = max(abs(control) for _, _, control in carrying)
    beyond = [(name, value) for name, value, _ in carrying if abs(value) > largest]
    straight, beside = _direct(found, gap)
    null = f"{CONTROL}: at most {largest:.0%} for any head or MLP{beside}."
    where = f"of the {len(carrying)} heads and MLPs {_layers_of([name for name, _, _ in carrying])}"
    if not beyond:
        (name, value, _) = carrying[0]
        answer = f"{SAME}{where}, {spoken(name)} carries most, {value:.0%} of the effect. {_PUT}{straight}"
        return _Answer(answer, null, "not distinguishable")
    named = ", ".join(f"{spoken(name)} ({value:.0%})" for name, value in beyond[:_NAMED])
    answer = (
        f"{len(beyond)} {where} carr{'y' if len(beyond) > 1 else 'ies'} more of the effect ({gap:+.1f} nats) than any does with random directions. "
        f"The strongest: {named}. {_PUT}{straight}"
    )
    return _Answer(answer, null)


_PUT = "Each is measured by putting its output from the edited run into the base run. These shares need not add up."
_ROUNDING = 1e-6
"""Part of the effect that rounding may give to a component that the edit cannot reach."""


def _direct(found: Found, gap: float) -> tuple[str, str]:
    """The direct effect as a part of the whole, and the same of the control."""
    if found.direct is None:
        return "", ""
    said = (
        f" With every head and MLP held as in the base, {float(found.direct.mean()) / gap:.0%} remains (direct effect)."
    )
    if found.direct_control is None:
        return said, ""
    return said, f"; {float(found.direct_control.mean()) / gap:.0%} as direct effect"


def _layers_of(names: Sequence[str]) -> str:
    """The layers of heads such as 2.1 and MLPs such as mlp3.

    >>> _layers_of(["2.1", "mlp5", "mlp3"]), _layers_of(["mlp3"])
    ('of layers 2 to 5', 'of layer 3')
    """
    layers = sorted(int(name.removeprefix("mlp").split(".")[0]) for name in names)
    return f"of layer {layers[0]}" if layers[0] == layers[-1] else f"of layers {layers[0]} to {layers[-1]}"


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
    ranges = found.untrained_ranks or tuple(() if fresh is None else (fresh.effective_rank,) for _, fresh in pairs)
    shown = [
        f"about {(n := round(operator.effective_rank))} direction{'s' * (n != 1)} at {operator.where} "
        f"(effective rank {operator.effective_rank:.1f} of {len(operator.write)})"
        for operator, _ in pairs[:2]
    ]
    more = f" (and {len(pairs) - 2} more sites)" if len(pairs) > 2 else ""
    used = f"{' and '.join(shown)}{more}."
    used = f"{used[0].upper()}{used[1:]}"
    beside = " and ".join(map(_reach, ranges[:2]))
    null = f"Effective rank before training: {beside}{_n_fresh(ranges)}."
    identified = f" {_identified(found)}".rstrip()
    compared = [
        _apart(operator.effective_rank, draws) for (operator, _), draws in zip(pairs, ranges, strict=True) if draws
    ]
    if compared and max(compared) < _CLOSE:
        return _Answer(
            f"{used} That is not distinguishable from an untrained edit.{identified}", null, "not distinguishable"
        )
    low = " A low rank alone shows no training: an untrained edit may have one too." if compared else ""
    return _Answer(f"{used}{low}{identified}", null)


def _reach(draws: Sequence[float]) -> str:
    """Where draws lie.

    >>> _reach([3.2]), _reach([1.0, 1.02]), _reach([3.2, 2.9]), _reach([])
    ('3.2', '1.0', '2.9 to 3.2', 'unknown')
    """
    ends = sorted({f"{draw:.1f}" for draw in (min(draws), max(draws))}, key=float) if draws else ["unknown"]
    return " to ".join(ends)


def _n_fresh(ranges: Sequence[Sequence[float]]) -> str:
    n = max(map(len, ranges))
    return f" ({n} initialisations)" if n > 1 else " (one initialisation, so its spread is not known)" if n else ""


def _apart(rank: float, draws: Sequence[float]) -> float:
    """How far a rank lies outside the range of the untrained ones; 0 inside."""
    return max(0.0, rank - max(draws), min(draws) - rank)


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
    fixed, partly = (
        ("does not fix" if stiff.degrees > _TURNED else "fixes"),
        " only partly" * (stiff.degrees <= _TURNED < free.degrees),
    )
    random = f"; toward a random direction, {_far(turns['random'])}" if "random" in turns else ""
    held = f"the most sensitive of these turns changes them by {stiff.held_out_kl:.2g} nats and the least sensitive by {free.held_out_kl:.2g}"
    enough = f"{_far(stiff)} {'is' if _far(stiff).endswith('degree') else 'are'} enough"
    return (
        f"The behaviour {fixed} the strongest write direction of {stiff.site}{partly}. Turned the most sensitive way, {enough} "
        f"to change the outputs by {identified.eps:g} nats of KL divergence. Turned the least sensitive way, it takes "
        f"{_far(free)}{random}. On held-out prompts, {held}. The section has other directions."
    )


def _far(turn: Turn) -> str:
    angle = f"{turn.degrees:.0f}"
    return f"{'at least ' * turn.free}{angle} degree{'s' * (angle != '1')}"


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
    told = [
        one for one in (_wanted(found.readouts), _written(found.readouts), _read(found.contexts)) if one is not None
    ]
    answer, null = " ".join(one.sentence for one in told), " ".join(one.chance for one in told if one.chance)
    if not any(one.shown for one in told):
        return _Answer(f"{SAME}{answer[0].lower()}{answer[1:]}", null, "not distinguishable")
    return _Answer(answer, null)


class _Told(NamedTuple):
    """What is said of one kind of number."""

    shown: bool
    """Whether anything is beyond chance."""
    sentence: str
    chance: str = ""


def _direction(where: str, number: int) -> str:
    """A write direction by its rank, because its number counts from 0.

    >>> _direction("layer 4", 1), _direction("layer 4", 5)
    ('the second strongest direction of layer 4', 'direction 5 of layer 4')
    """
    return f"the {_ORDER[number]} direction of {where}" if number < len(_ORDER) else f"direction {number} of {where}"


def _wanted(readouts: Sequence[DirectionReadout]) -> _Told | None:
    """The wanted answers that a direction changes, by p corrected for all of them in all directions."""
    looks = [
        (p, readout, token, change)
        for readout in readouts
        for (token, change, _), p in zip(readout.watched, readout.p_all, strict=False)
    ]
    if not looks:
        return None
    # The clearest are named, in the order of the directions.
    clear = sorted((look for look in looks if look[0] < _LEVEL), key=lambda look: look[0])[:_NAMED]
    moved = [look for look in looks if look in clear]
    n = sum(len(readout.p_all) for readout in readouts)
    tested = f"{n} test{'s' * (n != 1)}"
    if not moved:
        p, _, token, _ = min(looks, key=lambda look: look[0])
        said = f"no direction moves a wanted answer further than random directions do (least p, of {token!r}: {p:.2g} of {tested})."
        return _Told(False, f"Through the unembedding alone, {said}")
    parts = [
        f"{_direction(readout.where, readout.direction)} {_verb(change)} {token!r} by {abs(change):.1f} logits (p = {p:.2g})"
        for p, readout, token, change in moved
    ]
    return _Told(
        True,
        f"Through the unembedding alone, {' and '.join(parts)}. These p are of the wanted answers only, corrected for {tested}.",
    )


def _verb(change: float) -> str:
    return "raises" if change > 0 else "lowers"


def _written(readouts: Sequence[DirectionReadout]) -> _Told | None:
    """The token furthest beyond its band, which covers all tokens of the vocabulary in all directions."""
    sides = [
        (change / edge if change * edge > 0 else 0.0, readout, token, change)
        for readout in readouts
        for moved, edge in ((readout.promoted, readout.null_high), (readout.suppressed, readout.null_low))
        for token, change in moved[:1]
    ]
    if not sides:
        return None
    ratio, readout, token, change = max(sides, key=lambda side: side[0])
    what = f"{_direction(readout.where, readout.direction)} {_verb(change)} {token!r} by {abs(change):.1f}"
    band = f"{readout.null_low:.1f} to {readout.null_high:.1f} logits for that direction".replace("-", "\N{MINUS SIGN}")
    chance = f"{CONTROL}: {band} (in 95% of {readout.n_null} draws, no token of any direction is outside its range)."
    start = "Tested on every token of the vocabulary, which is a stricter test, "
    if ratio > 1:
        return _Told(True, f"{start}{what}.", chance)
    return _Told(False, f"{start}no token stands out (most: {what}).", chance)


def _read(contexts: Sequence[ReadContexts]) -> _Told | None:
    """The token with the largest reading, beside the largest that random readings have."""
    read = [(context, one) for one in contexts for context in one.contexts]
    if not read:
        return None
    context, one = max(read, key=lambda pair: pair[0].z / max(pair[1].null_high, 1e-9))
    token, chance = (
        context.tokens[context.position],
        f"Of {one.n_null} random readings, 95% have a highest score below {one.null_high:.1f}.",
    )
    if context.z > one.null_high:
        what = f"{_direction(one.where, one.direction)} reads {token!r} most: a score of {context.z:.1f} standard deviations."
        return _Told(True, f"{what[0].upper()}{what[1:]}", chance)
    return _Told(
        False,
        f"We found no token that a direction reads: the highest score is {context.z:.1f} standard deviations ({token!r}).",
        chance,
    )


def _else(found: Found) -> _Answer | None:
    outcomes = found.outcomes_of("old answer")
    if not outcomes:
        return None
    (outcome, *_) = outcomes
    changed, by_chance = 1 - outcome.edited, 1 - outcome.control
    kl = f" The mean KL divergence of all {outcome.n} is {outcome.kl:.2g} nats."
    beside = "" if outcome.control_kl != outcome.control_kl else f", {outcome.control_kl:.2g} nats"
    null = f"{CONTROL}: {_of(by_chance, outcome.n)}{beside}."
    if not changed:
        return _Answer(f"None of the {outcome.n} answers that should stay is changed.{kl}", null)
    what = f"{_of(changed, outcome.n)} answers that should stay are changed"
    p = _p_more(changed, by_chance, outcome.n)
    if p < _LEVEL:
        return _Answer(f"{what} (p = {p:.2g}).{kl}", null)
    # So few that they would show nothing even if random directions changed none.
    few = not _more(changed, 0.0, outcome.n)
    verdict = "With so few, the test cannot decide" if few else "That is not distinguishable from its control"
    return _Answer(f"{what}. {verdict} (p = {p:.2g}).{kl}", null, "not distinguishable")


def _natural(found: Found) -> _Answer | None:
    if not found.manifolds:
        return None
    worst = max(found.manifolds, key=lambda site: site.beyond()[1] - site.beyond()[0])
    natural, edited, control = worst.beyond()
    n = len(worst.edited)
    parts, unedited, random = ([site.beyond()[which] for site in found.manifolds] for which in (1, 0, 2))
    shares = " and ".join(f"{part:.0%} at {site.where}" for part, site in zip(parts, found.manifolds, strict=True))
    what = f"beyond the 95th percentile of natural tokens (Mahalanobis distance from their mean) are {shares} of the edited ones"
    null = f"Unedited tokens: {_shares(unedited)}. {CONTROL}: {_shares(random)}."
    # Also twice the 5%, because with many tokens even a small excess is significant.
    if _more(natural, 0.05, n) and natural > 0.1:
        return _Answer(
            f"Not known: {what}. But so are {natural:.0%} of unedited ones, where 5% is expected.",
            null,
            "not distinguishable",
        )
    # Far from 5%, the estimate is biased, and only the unedited tokens measured with it tell how
    # edited ones differ.
    off = (
        f" Unedited tokens should have 5%. They have {_shares(unedited)}, so compare with that."
        if _off(natural, n)
        else ""
    )
    if not _more(edited, natural, n):
        return _Answer(f"Not distinguishable from natural ones: {what}.{off}", null, "not distinguishable")
    if _more(edited, control, n):
        return _Answer(f"Less than unedited ones, and less than random changes of the same length: {what}.{off}", null)
    return _Answer(
        f"Less than unedited ones, but no more unusual than random changes of the same length: {what}.{off}", null
    )


def _shares(shares: Sequence[float]) -> str:
    """One percentage for each site; one alone where all are equal."""
    return " and ".join(dict.fromkeys(f"{share:.0%}" for share in shares))


def _off(share: float, n: int) -> bool:
    """Whether a share that should be 5% differs from it."""
    return _more(share, 0.05, n) or _more(0.05, share, n)


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
    null = f"Trained on shuffled answers: {worst.null_cosine:.2f}."
    said = f"{what} (p = {p:.2g}; smallest possible {1 / worst.n_null_pairs:.2g})."
    if not p < _LEVEL:
        return _Answer(f"{SAME}{said}", null, "not distinguishable")
    return _Answer(f"Closer than chance: {said}", null)


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
