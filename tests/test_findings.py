"""The sentences of a dissection, on results made by hand: what works, does nothing, equals its control, or moves everything."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from made import (
    OUTCOMES,
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
EMPTY = Dissection("a model", "an edit", 24, 200)
SEEDS = replace(made_agreements(("this edit", "seed 1"))[0], n_null_edits=6, null_cosine=0.2, p_cosine=1 / 28, p_kl=0.1)


def answer(part: str, **results: object) -> Finding:
    (found,) = (finding for finding in replace(EMPTY, **results).findings if finding.section == part)
    return found


def test_what_was_not_run_says_how_to_run_it() -> None:
    assert len(EMPTY.findings) == 8
    assert {finding.strength for finding in EMPTY.findings} == {"not measured"}
    assert answer("where").answer == 'Not measured (run with parts=["where"]).'
    assert "retrain=TrainConfig" in answer("seeds").answer
    left = (("directions", "it is not affine"), ("reads", "it starts from directions, which was left out"))
    assert answer("directions", left_out=left).answer == "Not measured: it is not affine."
    assert answer("else", left_out=left).answer == 'Not measured (run with parts=["else"]).'


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
            "8 of 200 answers that should stay are changed (mean KL divergence 0.012 nats). That is not distinguishable",
            "not distinguishable",
        ),
        (0.2, 0.97, "160 of 200 answers that should stay are changed", "shown"),
    ],
)
def test_what_else_changes(edited: float, control: float, begins: str, strength: str) -> None:
    found = answer("else", outcomes=(CHANGED, replace(STAYED, edited=edited, control=control)))
    assert (found.answer.startswith(begins), found.strength) == (True, strength), found
    assert "KL divergence 0.012 nats" in found.answer


def test_where_names_the_cell_that_carries_most() -> None:
    effect = replace(made_map(), quantity="effect of this cell alone / effect of the whole edit (+9.20 nats)")
    found = answer("where", effect=effect, ablation=made_ablation())
    assert "hook_resid_pre at token ' stands' gives 90% of the effect by itself" in found.answer
    assert "blocks.3.hook_resid_post has the largest part: 3.0 of 4.0 nats" in found.answer
    assert found.strength == "shown"
    equal = answer("where", effect=replace(effect, control=effect.values))
    assert equal.answer.startswith("Not distinguishable from its control: of 72 cells, the strongest")
    assert equal.strength == "not distinguishable"
    absolute = replace(effect, quantity="effect of this cell alone, in nats: the whole edit's effect (+0.01) is small")
    assert "gives +0.90 nats by itself" in answer("where", effect=absolute).answer


def test_through_what_names_components_beyond_the_control() -> None:
    heads, mlps = made_heads(), made_mlps()
    found = answer("through", heads=heads, mlps=mlps, direct=torch.full((8,), 1.0))
    assert "layer 2 head 1 (50%), layer 3 MLP (30%), layer 5 head 3 (-2" in found.answer
    assert "25% remains (direct effect)" in found.answer
    assert found.strength == "shown"
    equal = answer("through", heads=replace(heads, control=heads.values))
    assert equal.answer.startswith(
        "Not distinguishable from its control: of 24 heads and MLPs after the first edit, layer 2 head 1"
    )
    nothing = answer("through", heads=replace(heads, source=torch.tensor([1.0, -1.0] * 4)))
    assert "within two standard errors of 0" in nothing.answer
    assert nothing.strength == "not distinguishable"


def test_directions_are_identified_only_where_seeds_agree() -> None:
    trained, fresh = made_operator(), replace(made_operator(), spectrum=torch.ones(4))
    found = answer("directions", operators=(trained,), untrained=(fresh,))
    assert "1.7 of 4 at blocks.3.hook_resid_post" in found.answer
    assert "is not known: the edit was trained once" in found.answer
    assert (found.null, found.strength) == (
        "Effective rank of a newly initialised edit of the same shape: 4.0.",
        "shown",
    )
    assert answer("directions", operators=(trained,), untrained=(trained,)).strength == "not distinguishable"
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
        (11.0, 60.0, "is identified in part", "11 degrees where they change soonest, and 60 where they change latest."),
        (
            11.0,
            80.0,
            "is identified in part",
            "11 degrees where they change soonest, and at least 80 where they change latest.",
        ),
        (2.0, 9.0, "is identified", "2 degrees where they change soonest, and 9 where they change latest."),
        (40.0, 70.0, "is not identified", "40 degrees where they change soonest, and 70 where they change latest."),
    ],
)
def test_a_direction_is_identified_as_far_as_it_may_not_turn(
    stiffest: float, freest: float, verdict: str, said: str
) -> None:
    made = made_identification()
    angles = {"stiffest": stiffest, "freest": freest}
    # The second direction, walked as well, must not speak for the first.
    turns = [
        replace(turn, plus=angles[turn.toward], minus=-1.0) if turn.direction == 0 else turn for turn in made.turns
    ]
    identified = replace(made, turns=tuple(turns))
    found = answer("directions", operators=(made_operator(),), identified=identified).answer
    assert f"The strongest write direction of blocks.3.hook_resid_post {verdict}: a turn of it that moves" in found
    assert f"by 0.001 nats (KL divergence; 0.0014 on held-out prompts) is {said}" in found
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
    assert "raises the logit of '<|endoftext|>' by" in found.answer or "lowers the logit of ' Clock' by" in found.answer
    assert "moves furthest at ' Tower' (4.0 standard deviations)" in found.answer
    weak = answer(
        "reads",
        readouts=(replace(readout, null_high=9.0, null_low=-9.0),),
        contexts=(replace(contexts, null_high=5.0),),
    )
    assert weak.answer.startswith("Not distinguishable from its control: no token")
    assert (
        "raises"
        not in answer("reads", readouts=(replace(readout, null_high=9.0, null_low=-9.0),), contexts=(contexts,)).answer
    )


def test_a_wanted_answer_counts_with_its_corrected_p() -> None:
    inside = replace(made_readout(), null_high=9.0, null_low=-9.0, watched=((" Ostra", 2.0, 0.001),))
    found = answer("reads", readouts=(replace(inside, p_all=(0.01,)),))
    assert (
        found.answer
        == "Direction 0 of blocks.3.hook_resid_post raises the logit of the wanted ' Ostra' by 2.0 directly. "
        "Searched over the whole vocabulary, no token is moved beyond chance."
    )
    # Only what is named has its null beside it: the band of another direction would say nothing of this one.
    assert found.null == "For ' Ostra': p = 0.01, corrected for all wanted answers and directions."
    assert answer("reads", readouts=(replace(inside, p_all=(0.2,)),)).strength == "not distinguishable"


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
    assert "1.7 of 4 at layer 1 and 1.7 of 4 at layer 4." in "".join(one.answer for one in result.findings)
    page = report(result)
    assert page.settings["layer 4"] == full[1]
    assert not any(name in str(table) for section in page.sections for _, table in section.tables for name in full)


def test_natural_says_when_unedited_ones_are_unusual_too() -> None:
    far = made_manifold()
    found = answer("natural", manifolds=(far,))
    assert found.answer.startswith(
        "Less than unedited ones, and not distinguishable from random changes: 25% of edited tokens at blocks.3.hook_resid_post"
    )
    assert found.null.startswith("Unedited tokens: 5%, where 5% is expected. Random directions: ")
    same = answer("natural", manifolds=(replace(far, edited=far.natural),))
    assert same.answer.startswith("Not distinguishable from natural ones: 5%")
    broken = answer("natural", manifolds=(replace(far, natural=far.edited),))
    assert broken.answer.startswith("Not known: ")
    assert broken.strength == "not distinguishable"


def test_seeds_claim_nothing_without_a_null_of_trained_edits() -> None:
    found = answer("seeds", agreements=(SEEDS,))
    assert found.answer.startswith(
        "Closer than chance: changes of edits retrained from 1 other seed have a cosine of 0.90"
    )
    assert found.null == "Trained on shuffled answers: 0.20, p = 0.036 (smallest possible 0.036)."
    assert answer("seeds", agreements=(replace(SEEDS, p_cosine=0.3),)).strength == "not distinguishable"
    assert answer("seeds", agreements=(replace(SEEDS, n_null_edits=0),)).answer.startswith("Not known: ")


def test_a_summary_shows_whole_sentences_and_a_whole_table() -> None:
    found = replace(EMPTY, outcomes=(CHANGED, replace(STAYED, edited=1.0)), operators=(made_operator(),))
    printed = str(found.summary())
    assert all(finding.answer in printed and finding.question in printed for finding in found.findings)
    assert "..." not in printed.replace("TrainConfig(...)", "")
    assert printed in str(found)
    assert found.headline().startswith("Yes: the edited model gives the wanted answer in 23 of 24")
    hostile = replace(CHANGED, group="\x1b[2J\u202e")
    assert "\x1b" not in str(replace(EMPTY, outcomes=(hostile,)).summary())


def test_every_column_has_a_label_and_no_two_of_a_table_have_the_same() -> None:
    assert all(label and explanation.endswith(".") for label, explanation in COLUMNS.values())
    assert word("p of 12 looks").label == "p of 12 looks"
    with pytest.raises(KeyError):
        word("no such column")
