"""The smallest edit and equal side effects: what was planted is recovered, and what cannot be left out is kept."""

from __future__ import annotations

import pytest
import torch
from conftest import make_bridge, make_edit

import reftlens as rl
from reftlens.analysis import calibrate, minimal

WORDS = ("tower", "weaver", "river", "city", "old", "speaks", "lives", "stands", "there", "Ostra")
TEXTS = [f"The {word} by the {other}" for word in WORDS[:2] for other in WORDS[5:9]]
KEPT = [f"The {word} of the {other}" for word in WORDS[3:5] for other in WORDS[5:]]


def hidden(bridge, *, rank: int = 4) -> rl.Reft:
    """A rank-4 edit of all tokens at two sites, of which one direction at one token of one site has the effect.

    The other site is not idle: it writes the mean of the coordinates, which later layers cannot see.
    """
    width = bridge.cfg.d_model
    generator = torch.Generator().manual_seed(0)
    token = rl.encode(bridge, TEXTS[:1], [" Ostra"]).labels.max()
    last, unseen = rl.DiReFT(width, rank), rl.DiReFT(width, rank)
    answer = bridge.original_model.get_output_embeddings().weight[token].detach()
    with torch.no_grad():
        for edit in (last, unseen):
            edit.read.weight.copy_(0.02 * torch.randn(rank, width, generator=generator))
            edit.read.bias.copy_(0.1 * torch.randn(rank, generator=generator))
            edit.write.copy_(torch.ones(rank, width))
        # After the last block only the last token reaches the answer, so the one strong direction acts there alone.
        last.write[0] = 4 * (answer - answer.mean()) / answer.std()
        last.read.weight[0] = 0.0
        last.read.bias[0] = 2.0
    name = f"blocks.{bridge.cfg.n_layers - 1}.hook_resid_post"
    return rl.Reft([(rl.Site("blocks.0.hook_resid_post", rl.All()), unseen), (rl.Site(name, rl.All()), last)])


@pytest.mark.parametrize("trained", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_rank_1_edit_of_one_token_is_recovered_from_a_rank_4_edit_of_all(trained) -> None:
    bridge = rl.load_bridge("facts-small") if trained else make_bridge("gpt2")
    reft, examples = hidden(bridge), [(text, " Ostra") for text in TEXTS]
    before = {name: value.clone() for name, value in reft.state_dict().items()}
    small, path = minimal(bridge, reft, examples, KEPT, share=0.9)
    ((site, edit),) = small
    assert site.hook_name == f"blocks.{bridge.cfg.n_layers - 1}.hook_resid_post"
    assert site.positions == rl.At(-1)
    assert edit.rank == 1
    start, *_, end = path.path
    assert (start.sites, start.rank, end.sites, end.rank, end.tokens) == (2, 4, 1, 1, 1.0)
    assert end.effect >= 0.9 * start.effect
    assert end.kl <= path.kl == pytest.approx(1.1 * start.kl)
    assert [step.stage for step in path.path] == ["all", "sites", "tokens", "rank", "coordinates"]
    numbers = [step.numbers for step in path.path]
    assert numbers == sorted(numbers, reverse=True)
    assert end.numbers < start.numbers / 4
    # An ordinary edit, and the one given is as it was.
    assert all(torch.equal(value, before[name]) for name, value in reft.state_dict().items())
    assert len(small.edits(rl.encode(bridge, TEXTS))) == 1


def halves(bridge) -> tuple[rl.Reft, list[tuple[str, str]]]:
    """A push at two points, half of it at each, and examples of its effect."""
    reft, examples = hidden(bridge), [(text, " Ostra") for text in TEXTS]
    ((_, _), (site, strong)) = reft
    pushes = [rl.SteeringVector.of(2.0 * strong.write[0].detach() * part) for part in (0.5, 0.5)]
    block = site.hook_name.split(".")[1]
    both = rl.Reft(
        [(rl.Site(f"blocks.{block}.hook_mlp_out", "l1"), pushes[0]), (rl.Site(site.hook_name, "l1"), pushes[1])]
    )
    return both, examples


def test_an_effect_that_needs_two_sites_keeps_both(gpt2) -> None:
    bridge = gpt2
    both, examples = halves(bridge)
    small, path = minimal(bridge, both, examples, KEPT, share=0.98)
    assert len(small) == 2
    assert path.path[-1].effect >= 0.98 * path.path[0].effect
    with pytest.raises(ValueError, match="share must be"):
        minimal(bridge, both, examples, KEPT, share=1.5)
    with pytest.raises(ValueError, match="keeps a share of the effect"):
        minimal(bridge, both.scaled(-1.0), examples, KEPT)


def test_training_again_lets_one_site_do_what_two_did(gpt2) -> None:
    """The control is the test above: without training, neither site alone keeps the share."""
    both, examples = halves(gpt2)
    before = {name: value.clone() for name, value in both.state_dict().items()}
    # Batches of a third, so that their order tells the seeds apart: a steering vector always starts at zero.
    retrain = rl.TrainConfig(epochs=6, batch_size=4, lr=0.5, schedule="constant", progress=True)
    small, path = minimal(gpt2, both, examples, KEPT, share=0.98, kl=20.0, retrain=retrain, seeds=(3, 4))
    assert len(small) == 1
    assert path.path[-1].effect >= 0.98 * path.path[0].effect
    # Those of other seeds have the same shape, and begin anew.
    assert [step.stage for step in path.seeds] == ["seed 3", "seed 4"]
    assert all((step.sites, step.rank) == (1, path.path[-1].rank) for step in path.seeds)
    assert all(step.effect > 0.5 * path.path[0].effect for step in path.seeds)
    assert len({step.effect for step in (path.path[-1], *path.seeds)}) == 3
    assert all(torch.equal(value, before[name]) for name, value in both.state_dict().items())
    assert len(path.to_dataframe()) == 7


def test_edits_are_compared_at_equal_side_effect(gpt2) -> None:
    bridge = gpt2
    edit = rl.Reft([(rl.Site("blocks.1.hook_resid_post", "l1"), make_edit(rl.LoReFT))])
    vector = rl.Reft([(rl.Site("blocks.1.hook_resid_post", "l1"), rl.SteeringVector.of(torch.randn(32)))])
    batch = rl.encode(bridge, KEPT)
    with torch.no_grad():
        base = batch.at_last_prompt_token(bridge(batch.tokens, attention_mask=batch.attention_mask)).log_softmax(-1)
    for reft, budget in ((edit, 1e-3), (vector, 1e-2), (edit.scaled(0.5), 1e-2)):
        found = calibrate(bridge, reft, KEPT, kl=budget)
        assert found.met
        with torch.no_grad(), reft.scaled(found.scale).hooks(bridge, batch):
            out = bridge(batch.tokens, attention_mask=batch.attention_mask)
        after = batch.at_last_prompt_token(out).log_softmax(-1)
        assert float((base.exp() * (base - after)).sum(-1).mean()) == pytest.approx(budget, rel=0.04)
    far = calibrate(bridge, vector.scaled(1e-3), KEPT, kl=10.0)
    assert not far.met
    assert far.scale == 8.0
    assert "not met" in far.headline()
