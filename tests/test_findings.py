"""The sentences of a dissection, on results made by hand: what works, does nothing, equals its control, or moves everything."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from made import (
    OUTCOMES,
    TOKENS,
    made_ablation,
    made_agreements,
    made_heads,
    made_identification,
    made_manifold,
    made_map,
    made_mlps,
    made_operator,
    made_overlap,
    made_readout,
)

from reftlens.dissection import Dissection
from reftlens.dissection.names import short_names, with_short_names
from reftlens.dissection.sections import report
from reftlens.results import Context, Finding, Outcome, ReadContexts
from reftlens.results.words import COLUMNS, word

CHANGED, STAYED = OUTCOMES[0], replace(OUTCOMES[1], edited=0.96, control=0.97)
EFFECT = replace(made_map(), quantity="effect of this cell alone / effect of the whole edit (+9.20 nats)")
EMPTY = Dissection("a model", "an edit", 24, 200)
SEEDS = replace(made_agreements(("this edit", "seed 1"))[0], n_null_edits=6, null_cosine=0.2, p_cosine=1 / 28, p_kl=0.1)


def answer(part: str, **results: object) -> Finding:
    (found,) = (finding for finding in replace(EMPTY, **results).findings if finding.section == part)
    return found


def test_what_was_not_run_says_how_to_run_it() -> None:
    assert len(EMPTY.findings) == 8
    assert {finding.strength for finding in EMPTY.findings} == {"not measured"}
    assert answer("where").answer == "Not measured. To measure it:"
    assert answer("where").code == 'dissect(..., DissectConfig(parts=["where"]))'
    assert "one training seed, so nothing above is known to hold for another" in answer("seeds").answer
    assert "retrain=TrainConfig" in answer("seeds").code
    left = (("directions", "it is not affine"), ("reads", "it starts from directions, which was left out"))
    assert answer("directions", left_out=left).answer == "Not measured: it is not affine."
    assert answer("directions", left_out=left).code == "", "nothing to run"
    assert answer("else", left_out=left).code == 'dissect(..., DissectConfig(parts=["else"]))'


@pytest.mark.parametrize(
    ("edited", "control", "begins", "strength"),
    [
        (0.96, 0.02, "Yes: the edited model gives the wanted answer in 23 of 24 prompts", "shown"),
        (0.6, 0.0, "Mostly: ", "shown"),
        (0.3, 0.0, "In part: the edited model gives the wanted answer in 7 of 24", "shown"),
        (
            0.9,
            0.85,
            "Not distinguishable from its control: the edited model gives the wanted answer in 22 of 24",
            "not distinguishable",
        ),
        (0.04, 0.0, "Not distinguishable from its control: ", "not distinguishable"),
        (0.0, 0.0, "No: the edited model gives the wanted answer in 0 of 24", "not distinguishable"),
    ],
)
def test_does_it_work(edited: float, control: float, begins: str, strength: str) -> None:
    found = answer("works", outcomes=(replace(CHANGED, edited=edited, control=control),))
    assert found.answer.startswith(begins)
    assert found.null == f"Random directions: {round(control * 24)} of 24."
    assert found.strength == strength


def test_few_examples_show_nothing() -> None:
    """Two right of two may be chance, though the fraction is 100%."""
    assert (
        answer("works", outcomes=(Outcome("g", "new answer", 2, 0.0, 1.0, 0.0, 3.0),)).strength == "not distinguishable"
    )


@pytest.mark.parametrize(
    ("edited", "control", "begins", "strength"),
    [
        (1.0, 1.0, "None of the 200 answers that should stay is changed", "shown"),
        (
            0.96,
            0.97,
            "8 of 200 answers that should stay are changed. That is not distinguishable from its control (p = 0.39).",
            "not distinguishable",
        ),
        (0.2, 0.97, "160 of 200 answers that should stay are changed (p = ", "shown"),
        (
            0.98,
            1.0,
            "4 of 200 answers that should stay are changed. With so few, the test cannot decide (p = 0.062).",
            "not distinguishable",
        ),
        (0.97, 1.0, "6 of 200 answers that should stay are changed (p = 0.015).", "shown"),
    ],
)
def test_what_else_changes(edited: float, control: float, begins: str, strength: str) -> None:
    found = answer("else", outcomes=(CHANGED, replace(STAYED, edited=edited, control=control)))
    assert (found.answer.startswith(begins), found.strength) == (True, strength), found
    assert found.answer.endswith("The mean KL divergence of all 200 is 0.012 nats.")
    assert found.null == f"Random directions: {round((1 - control) * 200)} of 200.", "no KL of theirs is known"
    known = answer("else", outcomes=(CHANGED, replace(STAYED, edited=edited, control=control, control_kl=0.004)))
    assert known.null.endswith(" of 200, 0.004 nats.")


def test_where_names_the_cell_that_carries_most() -> None:
    found = answer("where", effect=EFFECT, ablation=made_ablation())
    start = "The whole edit raises the logit of the wanted answer beside that of the base's answer by 9.2 nats (mean of 40 prompts)."
    assert found.answer.startswith(start)
    assert "hook_resid_pre at token ' stands' gives 90% of that by itself" in found.answer
    assert "blocks.3.hook_resid_post has the largest part: 3.0 of 4.0 nats" in found.answer
    assert found.null.endswith("; +0.1 nats for blocks.3.hook_resid_post alone.")
    assert found.strength == "shown"
    equal = answer("where", effect=replace(EFFECT, control=EFFECT.values))
    assert equal.answer.startswith("Not distinguishable from its control: The whole edit raises")
    assert "Of 72 cells (one site at one token), the strongest, " in equal.answer
    assert "which is also their highest" in equal.null
    assert equal.strength == "not distinguishable"
    absolute = replace(EFFECT, quantity="effect of this cell alone, in nats: the whole edit's effect (+0.01) is small")
    told = answer("where", effect=absolute).answer
    assert "gives +0.90 nats by itself" in told
    assert "The whole edit" not in told, "its effect is too small to be what cells are parts of"
    lowers = replace(EFFECT, quantity=EFFECT.quantity.replace("+9.20", "-9.20"))
    assert "lowers the logit" in answer("where", effect=lowers).answer


def test_where_names_the_cells_beyond_every_cell_of_the_control() -> None:
    values, control = torch.zeros(EFFECT.values.shape), torch.zeros(EFFECT.values.shape)
    values[0, 1], values[1, 2], values[0, 3], control[0, 1] = 0.8, -0.2, 0.05, 0.1
    planted = replace(EFFECT, values=values, control=control, control_name="turned, mean of 4", each=None)
    found = answer("where", effect=planted)
    assert (
        f"1 more of the 72 cells (one site at one token) exceed every cell of the control: {EFFECT.rows[1]} at"
        in found.answer
    )
    assert "(-20%)" in found.answer
    assert "different words" not in found.answer
    assert found.null == "Random directions (mean of 4 draws): 10% in that cell, which is also their highest."
    values[1, 2], control[1, 5] = 0.0, 0.3
    alone = answer("where", effect=planted)
    assert "No other of the 72 cells (one site at one token) exceeds every cell of the control." in alone.answer
    assert alone.null.endswith("10% in that cell and at most 30% in any.")


def test_where_says_that_a_column_may_hold_different_words() -> None:
    prompts = (("<s>", " a", " b", " is"), ("<s>", " c", " d", " in"))
    values = torch.tensor([[0.0, 0.0, 0.3, 0.9]])
    mixed = replace(
        EFFECT, values=values, control=values / 9, rows=("layer 1",), tokens=prompts[0], prompts=prompts, n_prompts=2,
        starred=(False,) * 4, each=None, each_control=None,
    )  # fmt: skip
    found = answer("where", effect=mixed).answer
    assert "by 9.2 nats (mean of 2 prompts). Layer 1 at the last token gives 90% of that" in found
    assert "layer 1 at token 2 (30%). A token's number counts from 0; prompts have different words there." in found


def test_where_gives_the_control_of_the_whole_edit_and_of_two_parts() -> None:
    two = replace(made_ablation(2), control_whole=1.5, control_shapley=torch.tensor([0.3, 1.2]))
    found = answer("where", effect=EFFECT, ablation=two)
    assert "blocks.1.hook_resid_post has the larger part: 3.0 of 2.0 nats" in found.answer
    assert found.null.startswith("Random directions: +1.5 nats in all, ")
    assert found.null.endswith("; +1.2 nats as the part of blocks.1.hook_resid_post.")


def test_through_what_names_components_beyond_the_control() -> None:
    heads, mlps = made_heads(), made_mlps()
    found = answer("through", heads=heads, mlps=mlps, direct=torch.full((8,), 1.0))
    assert "layer 2 head 1 (50%), layer 3 MLP (30%), layer 5 head 3 (-2" in found.answer
    assert "25% remains (direct effect)" in found.answer
    assert found.strength == "shown"
    assert "as direct effect" not in found.null
    both = answer("through", heads=heads, mlps=mlps, direct=torch.ones(8), direct_control=torch.full((8,), 0.4))
    assert both.null.endswith(" for any head or MLP; 10% as direct effect.")
    equal = answer("through", heads=replace(heads, control=heads.values))
    assert equal.answer.startswith("Not distinguishable from its control: of the ")
    assert "layer 2 head 1 carries most, 50% of the effect. Each is measured by putting" in equal.answer
    nothing = answer("through", heads=replace(heads, source=torch.tensor([1.0, -1.0] * 4)))
    assert "within two standard errors of 0" in nothing.answer
    assert nothing.strength == "not distinguishable"


def test_directions_are_identified_only_where_seeds_agree() -> None:
    trained, fresh = made_operator(), replace(made_operator(), spectrum=torch.ones(4))
    found = answer("directions", operators=(trained,), untrained=(fresh,))
    assert "About 2 directions at blocks.3.hook_resid_post (effective rank 1.7 of 4)" in found.answer
    assert "is not known: the edit was trained once" in found.answer
    assert (found.null, found.strength) == (
        "Effective rank before training: 4.0 (one initialisation, so its spread is not known).",
        "shown",
    )
    assert answer("directions", operators=(trained,), untrained=(trained,)).strength == "not distinguishable"
    for ranks, strength in (((2.5, 4.0, 3.0), "shown"), ((1.2, 4.0, 1.6), "not distinguishable")):
        several = answer("directions", operators=(trained,), untrained=(fresh,), untrained_ranks=(ranks,))
        reach = f"{min(ranks)} to {max(ranks)}"
        assert (several.null, several.strength) == (
            f"Effective rank before training: {reach} (3 initialisations).",
            strength,
        )
    for angle, kl, said in (
        (40.0, 0.001, "not identified: another seed does nearly the same with directions 40 degrees off"),
        (5.0, 0.001, "Seeds that do the same agree on them within 5 degrees"),
        (40.0, 1.9, "is not known: no retrained edit does the same"),
    ):
        pair = replace(SEEDS, angle=angle, kl=kl, control_kl=2.0)
        assert said in answer("directions", operators=(trained,), untrained=(fresh,), agreements=(pair,)).answer


@pytest.mark.parametrize(
    ("stiffest", "freest", "verdict", "said"),
    [
        (11.0, 60.0, ("fixes", " only partly"), ("11 degrees are", "60 degrees")),
        (11.0, 80.0, ("fixes", " only partly"), ("11 degrees are", "at least 80 degrees")),
        (1.0, 9.0, ("fixes", ""), ("1 degree is", "9 degrees")),
        (40.0, 70.0, ("does not fix", ""), ("40 degrees are", "70 degrees")),
    ],
)
def test_a_direction_is_identified_as_far_as_it_may_not_turn(
    stiffest: float, freest: float, verdict: tuple[str, str], said: tuple[str, str]
) -> None:
    made = made_identification()
    angles = {"stiffest": stiffest, "freest": freest}
    # The second direction, walked as well, must not speak for the first.
    turns = [
        replace(turn, plus=angles[turn.toward], minus=-1.0) if turn.direction == 0 else turn for turn in made.turns
    ]
    identified = replace(made, turns=tuple(turns))
    found = answer("directions", operators=(made_operator(),), identified=identified).answer
    fixes, partly = verdict
    assert f"The behaviour {fixes} the strongest write direction of blocks.3.hook_resid_post{partly}. Turned" in found
    assert f"way, {said[0]} enough to change the outputs by 0.001 nats of KL divergence." in found
    held = "On held-out prompts, the most sensitive of these turns changes them by 0.0014 nats and the least sensitive by 0.0014."
    assert f"Turned the least sensitive way, it takes {said[1]}. {held}" in found
    random = replace(turns[0], toward="random", plus=27.0, minus=-1.0)
    turned = replace(identified, turns=(*turns, random))
    told = answer("directions", operators=(made_operator(),), identified=turned).answer
    assert f"it takes {said[1]}; toward a random direction, 27 degrees." in told
    assert "trained once" not in found
    pair = replace(SEEDS, angle=40.0, kl=0.001, control_kl=2.0)
    both = answer("directions", operators=(made_operator(),), identified=identified, agreements=(pair,)).answer
    assert "another seed does nearly the same with directions 40 degrees off" in both
    read_only = replace(made, turns=made.of("read"))
    assert "nats" not in answer("directions", operators=(made_operator(),), identified=read_only).answer


def test_reads_and_writes_are_named_only_beyond_chance() -> None:
    readout = made_readout()
    context = Context((" the", " Tower"), 1, 4.0)
    contexts = ReadContexts("blocks.3.hook_resid_post", 0, (context,), 3.0, 100, 20)
    found = answer("reads", readouts=(readout,), contexts=(contexts,))
    # -3 is twice its edge, and 4 less than twice its own.
    token, change = readout.suppressed[0]
    assert (
        f"a stricter test, the strongest direction of blocks.3.hook_resid_post lowers {token!r} by {-change:.1f}."
        in found.answer
    )
    assert "of blocks.3.hook_resid_post reads ' Tower' most: a score of 4.0 standard deviations." in found.answer
    assert found.null == (
        "Random directions: \N{MINUS SIGN}1.5 to 2.5 logits for that direction (in 95% of 200 draws, no token of any direction is "
        "outside its range). Of 20 random readings, 95% have a highest score below 3.0."
    )
    weak = answer(
        "reads",
        readouts=(replace(readout, null_high=9.0, null_low=-9.0),),
        contexts=(replace(contexts, null_high=5.0),),
    )
    assert weak.answer.startswith("Not distinguishable from its control: tested on every token of the vocabulary")
    assert "no token stands out (most: the strongest direction" in weak.answer
    assert (
        "We found no token that a direction reads: the highest score is 4.0 standard deviations (' Tower')."
        in weak.answer
    )


def test_a_wanted_answer_counts_with_its_corrected_p() -> None:
    inside = replace(made_readout(), null_high=9.0, null_low=-9.0, watched=((" Ostra", 2.0, 0.001),))
    found = answer("reads", readouts=(replace(inside, p_all=(0.01,)),))
    assert found.answer.startswith(
        "Through the unembedding alone, the strongest direction of blocks.3.hook_resid_post raises ' Ostra' by 2.0 logits "
        "(p = 0.01). These p are of the wanted answers only, corrected for 1 test. Tested on every token of the vocabulary"
    )
    assert "no token stands out" in found.answer
    assert found.strength == "shown"
    assert "p = " not in found.null, "a p value is no number to compare with"
    none = answer("reads", readouts=(replace(inside, p_all=(0.2,)),))
    assert (
        "no direction moves a wanted answer further than random directions do (least p, of ' Ostra': 0.2" in none.answer
    )
    assert none.strength == "not distinguishable"
    # Several are named in the order of their directions, whatever their p.
    second = replace(inside, direction=1, watched=((" Vell", -1.0, 0.001),), p_all=(0.005,))
    both = answer("reads", readouts=(replace(inside, p_all=(0.01,)), second)).answer
    assert (
        "raises ' Ostra' by 2.0 logits (p = 0.01) and the second strongest direction of blocks.3.hook_resid_post lowers ' Vell' by 1.0"
        in both
    )


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (("L1 resid_post @ all", "L4 resid_post @ all"), ("layer 1", "layer 4")),
        (("L4 resid_post @ first 2", "L4 resid_post @ first 20"), ("layer 4 @ first 2", "layer 4 @ first 20")),
        (("L4 resid_post @ all", "L4 mlp_out @ all"), ("layer 4 resid_post", "layer 4 mlp_out")),
        (("L4 attn.z head 1 @ all", "L4 attn.z head 2 @ all"), ("layer 4 head 1", "layer 4 head 2")),
        (("L4 attn.z @ all", "L4 attn.z head 2 @ all"), ("layer 4", "layer 4 head 2")),
        (("L4 resid_post @ all #1", "L4 resid_post @ all #2"), ("layer 4 @ all #1", "layer 4 @ all #2")),
        (("L4 resid_post @ all",), ("layer 4",)),
        (("L4 resid_post @ all", "blocks.1.hook_resid_post"), ()),
        (("one: L1 resid_post @ all", "two: L4 resid_post @ all"), ()),
    ],
)
def test_sites_are_named_by_what_tells_them_apart(names: tuple[str, ...], short: tuple[str, ...]) -> None:
    found = short_names(names)
    assert tuple(found.values()) == short
    assert len(set(short)) == len(short)


def test_short_names_of_sites_are_everywhere_on_a_page_and_text_of_prompts_stays() -> None:
    full, tokens = ("L1 resid_post @ all", "L4 resid_post @ all"), ("L4 resid_post @ all", " in")
    operators = tuple(replace(made_operator(), site=name) for name in full)
    effect = replace(made_map(2, tokens), rows=full, quantity="effect / effect of the whole edit")
    overlap = replace(made_overlap(), first=f"{full[1]}, 2 write directions")
    left = ((f"base at {full[0]}", "why"),)
    result = replace(EMPTY, operators=operators, effect=effect, overlaps=(overlap,), left_out=left)
    found = with_short_names(result)
    assert [operator.where for operator in found.operators] == ["layer 1", "layer 4"]
    assert (found.effect.rows, found.effect.tokens) == (("layer 1", "layer 4"), tokens)
    assert found.overlaps[0].first == "layer 4, 2 write directions"
    assert found.left_out == (("base at layer 1", "why"),)
    assert with_short_names(found) is found
    assert "at layer 1 (effective rank 1.7 of 4) and about 2 directions at layer 4" in "".join(
        one.answer for one in result.findings
    )
    page = report(result)
    assert page.settings["layer 4"] == full[1]
    assert not any(name in str(table) for section in page.sections for _, table in section.tables for name in full)


def test_natural_says_when_unedited_ones_are_unusual_too() -> None:
    far = made_manifold()
    found = answer("natural", manifolds=(far,))
    assert found.answer.startswith(
        "Less than unedited ones, but no more unusual than random changes of the same length: beyond the 95th percentile of "
        "natural tokens (Mahalanobis distance from their mean) are 25% at blocks.3.hook_resid_post of the edited ones."
    )
    assert found.null.startswith("Unedited tokens: 5%. Random directions: ")
    assert "compare with that" not in found.answer
    further = replace(far, edited=torch.full_like(far.edited, 99.0), control=far.natural)
    assert answer("natural", manifolds=(further,)).answer.startswith(
        "Less than unedited ones, and less than random changes"
    )
    none = replace(
        further, natural=torch.full((200,), 40.0), edited=torch.full((200,), 99.0), control=torch.full((200,), 40.0)
    )
    biased = answer("natural", manifolds=(further, none)).answer
    assert "Unedited tokens should have 5%. They have 5% and 0%, so compare with that." in biased
    same = answer("natural", manifolds=(replace(far, edited=far.natural),))
    assert same.answer.startswith("Not distinguishable from natural ones: beyond the 95th")
    broken = answer("natural", manifolds=(replace(far, natural=far.edited),))
    assert broken.answer.startswith("Not known: ")
    assert broken.strength == "not distinguishable"


def test_seeds_claim_nothing_without_a_null_of_trained_edits() -> None:
    found = answer("seeds", agreements=(SEEDS,))
    assert found.answer == (
        "Closer than chance: changes of edits retrained from 1 other seed have a cosine of 0.90 or more with its changes "
        "(p = 0.036; smallest possible 0.036)."
    )
    assert found.null == "Trained on shuffled answers: 0.20."
    assert answer("seeds", agreements=(replace(SEEDS, p_cosine=0.3),)).strength == "not distinguishable"
    assert answer("seeds", agreements=(replace(SEEDS, n_null_edits=0),)).answer.startswith("Not known: ")


def test_a_summary_shows_whole_sentences_and_a_whole_table() -> None:
    found = replace(EMPTY, outcomes=(CHANGED, replace(STAYED, edited=1.0)), operators=(made_operator(),))
    printed = str(found.summary())
    assert all(text in printed for one in found.findings for text in (one.question, one.answer, one.code))
    assert "..." not in printed.replace("(...", "")
    assert printed in str(found)
    assert found.headline().startswith("Yes: the edited model gives the wanted answer in 23 of 24")
    hostile = replace(CHANGED, group="\x1b[2J\u202e")
    assert "\x1b" not in str(replace(EMPTY, outcomes=(hostile,)).summary())


def test_a_summary_of_one_part_has_its_numbers_and_no_numbers_leave_no_table() -> None:
    found = replace(EMPTY, effect=made_map(2, TOKENS[:4]))
    (line,) = found.summary().to_dataframe().to_dict("records")
    strongest = made_map(2, TOKENS[:4]).values.nan_to_num().abs().max()
    assert abs(float(line["found"])) == pytest.approx(float(strongest), abs=0.005)
    assert line["beside it"].startswith("random directions ")
    assert "DataFrame" not in str(EMPTY.summary())


def test_every_column_has_a_label_and_no_two_of_a_table_have_the_same() -> None:
    assert all(label and explanation.endswith(".") for label, explanation in COLUMNS.values())
    assert word("p of 12 looks").label == "p of 12 looks"
    with pytest.raises(KeyError):
        word("no such column")
