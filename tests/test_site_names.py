"""One short, unique name of each site, used by whatever shows it; controls paired by their place."""

from __future__ import annotations

import pytest
import torch
from conftest import PROMPTS, make_edit

import reftlens as rl
from reftlens.analysis import ablate, decompose, edit_size, off_manifold, read_directions, top_contexts, untrained
from reftlens.edit.checkpoint.card import plain, profile

NAME = "blocks.1.hook_resid_post"
NAMES = ("L1 resid_post @ first 2", "L1 resid_post @ last 1")


def untied(seed: int = 1) -> rl.Reft:
    """Two edits of different size at one hook."""
    edits = [make_edit(rl.LoReFT, rank=rank, seed=seed + rank) for rank in (1, 4)]
    rules = (rl.First(2), rl.Last(1))
    return rl.Reft([(rl.Site(NAME, rule), edit) for rule, edit in zip(rules, edits, strict=True)])


@pytest.mark.parametrize(
    ("site", "name"),
    [
        (rl.Site("blocks.3.hook_resid_post", rl.First(2)), "L3 resid_post @ first 2"),
        (rl.Site("blocks.3.hook_resid_post", "f2+l2"), "L3 resid_post @ f2 + l2"),
        (rl.Site("blocks.0.attn.hook_z", "l1", head=2), "L0 attn.z head 2 @ last 1"),
        (rl.Site("ln_final.hook_in", rl.All() | rl.Generated()), "ln_final.in @ all + generated"),
        (rl.Site("hook_embed", rl.All() - (rl.At(0) | rl.At(-1))), "embed @ all - (at 0 + at -1)"),
        (rl.Site("blocks.1.hook_mlp_out", rl.LastOf(rl.Span("the tower", 0))), "L1 mlp_out @ last of ('the tower'[0])"),
        (rl.Site("blocks.1.hook_mlp_out", rl.AnySpan(("a", "b"))), "L1 mlp_out @ any of 2 texts"),
    ],
)
def test_a_site_says_block_point_and_tokens(site, name) -> None:
    assert site.name == name


def test_names_of_one_edit_are_unique() -> None:
    twice = rl.Reft([*untied(), *untied(5)])
    assert twice.site_names == tuple(f"{name} #{number}" for number in (1, 2) for name in NAMES)
    composed = rl.Reft.compose({"facts": untied(), "manner": untied(5)})
    assert composed.site_names == tuple(f"{part}: {name}" for part in ("facts", "manner") for name in NAMES)
    texts = [rl.Site(NAME, rl.Span("one text that is long and ends" + end)) for end in "ab"]
    assert len(set(rl.Reft([(site, make_edit(rl.LoReFT)) for site in texts]).site_names)) == 2


def test_results_name_sites_and_not_hooks(gpt2) -> None:
    reft, batch = untied(), rl.encode(gpt2, PROMPTS)
    operators = decompose(gpt2, reft, [batch])
    assert tuple(operator.where for operator in operators) == NAMES
    assert [operator.hook_name for operator in operators] == [NAME] * 2
    assert all(operator.headline().startswith(name) for operator, name in zip(operators, NAMES, strict=True))
    assert {*operators[0].to_dataframe()["site"]} == {NAMES[0]}
    contexts = top_contexts(gpt2, reft, operators, [batch], directions=1, n_null=3)
    assert tuple(item.where for item in contexts) == NAMES
    with pytest.raises(ValueError, match="one entry for each site"):
        top_contexts(gpt2, reft, operators[::-1], [batch])
    readouts = read_directions(gpt2, operators[1], batch, n_null=19)
    assert {item.where for item in readouts} == {NAMES[1]}
    metric = rl.analysis.logit_difference_of(gpt2, PROMPTS, [" Ostra"] * 3, [" weaver"] * 3)
    assert ablate(gpt2, reft, batch, metric, progress=False, n_control=1).sites == NAMES
    size = edit_size(gpt2, reft, PROMPTS[0])
    assert size.rows == NAMES
    batches = [rl.encode(gpt2, PROMPTS) for _ in range(3)]
    assert tuple(found.where for found in off_manifold(gpt2, reft, batches)) == NAMES
    figure = rl.plot.spectrum(operators)
    titles = "\n".join(axes.get_title(loc="left") for axes in figure.axes)
    assert all(name in titles for name in NAMES)


@pytest.mark.slow
def test_controls_of_two_sites_at_one_hook_are_their_own(gpt2) -> None:
    reft = untied()
    examples = [(f"The {word} by the {other}", f" {other}") for word in ("tower", "river") for other in ("old", "city")]
    found = rl.dissect(
        gpt2, reft, examples, rl.DissectConfig(batch_size=2, n_null=19, n_pairs=4, n_random=2, progress=False)
    )
    fresh = decompose(gpt2, untrained(reft, seed=0), [rl.encode(gpt2, [p for p, _ in examples])])
    assert [len(operator.spectrum) for operator in found.operators] == [1, 4]
    for (own, beside), expected in zip(found.beside_untrained(), fresh, strict=True):
        assert own.where == beside.where == expected.where
        torch.testing.assert_close(beside.spectrum, expected.spectrum, rtol=1e-4, atol=1e-4)
    table = found.summary().to_dataframe()
    lines = table[table["question"] == "effective rank"]
    assert tuple(lines["where"]) == NAMES
    assert list(lines["beside it"]) == [f"untrained {operator.effective_rank:.2f}" for operator in fresh]
    page = found.to_html()
    assert all(name in page for name in NAMES)
    assert all(name in repr(found) for name in NAMES)


def test_the_card_says_which_tokens(gpt2, tmp_path) -> None:
    folder = untied().save_pretrained(tmp_path / "edit", bridge=gpt2)
    card = (folder / "README.md").read_text()
    assert all(plain(name) in card for name in NAMES)
    assert profile(untied()._pairs()).rows == NAMES
