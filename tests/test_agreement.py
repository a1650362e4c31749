"""Edits that are the same function must agree whatever their matrices; unrelated ones must not."""

from __future__ import annotations

import dataclasses
import math
from itertools import combinations

import pytest
import torch
from conftest import COMPLETIONS, PROMPTS, make_edit

import reftlens as rl
from reftlens.analysis import agreement, at_random_sites, null_edits, permuted_labels, random_model, untrained
from reftlens.analysis.engine.activations import edited_activations

NAME = "blocks.1.hook_resid_post"
EXAMPLES = list(zip(PROMPTS, COMPLETIONS, strict=True))


def site(intervention, positions="f2+l2", name=NAME) -> rl.Reft:
    return rl.Reft([(rl.Site(name, positions), intervention)])


def rotated(edit: rl.LoReFT) -> rl.LoReFT:
    Q = torch.linalg.qr(torch.randn(edit.rank, edit.rank, generator=torch.Generator().manual_seed(0))).Q
    other = rl.LoReFT(edit.d_model, edit.rank)
    with torch.no_grad():
        other.rotation.weight.copy_(Q @ edit.R)
        other.source.weight.copy_(Q @ edit.source.weight)
        other.source.bias.copy_(Q @ edit.source.bias)
    return other


def padded(edit: rl.LoReFT, rank: int) -> rl.LoReFT:
    """The same function with a larger R, whose further rows write back what they read."""
    wide = rl.LoReFT(edit.d_model, rank)
    with torch.no_grad():
        rows = torch.cat([edit.R, torch.randn(rank - edit.rank, edit.d_model)])
        wide.rotation.weight.copy_(torch.linalg.qr(rows.T).Q.T)
        new = wide.R.clone()
        wide.source.weight.copy_(new)
        wide.source.bias.zero_()
        turn = new @ edit.R.T
        wide.source.weight += turn @ (edit.source.weight - edit.R)
        wide.source.bias += turn @ edit.source.bias
    return wide


def test_one_function_in_other_matrices_agrees_and_raw_r_misleads(bridge) -> None:
    edit = make_edit(rl.LoReFT, rank=2)
    batches = [rl.encode(bridge, PROMPTS[:2]), rl.encode(bridge, PROMPTS[2:])]
    family = {
        "a": site(edit),
        "rotated": site(rotated(edit)),
        "wide": site(padded(edit, 6)),
        "wider": site(padded(edit, 6)),
    }
    found = agreement(bridge, family, batches, n_null=20)
    for pair in found:
        assert pair.sites == (NAME,)
        assert pair.relative_error < 1e-3
        assert pair.cosine > 0.999
        assert pair.kl < 1e-5
        assert pair.angle < 1.0
        assert pair.rank in (1, 2)
        assert pair.control_error > 0.5
        assert pair.control_kl > 100 * pair.kl
    wide = next(p for p in found if (p.first, p.second) == ("wide", "wider"))
    assert wide.raw_angle > 20, "what R holds beside the used directions differs"
    assert wide.raw_angle < wide.raw_null_angle


def test_it_equals_the_sums_written_out(gpt2) -> None:
    a, b = (site(make_edit(rl.LoReFT, seed=seed)) for seed in (1, 2))
    batch = rl.encode(gpt2, PROMPTS)
    (pair,) = agreement(gpt2, {"a": a, "b": b}, [batch], n_null=5)
    ((_, h),) = edited_activations(gpt2, a, batch)
    one, two = (next(iter(reft))[1].delta(h).detach() for reft in (a, b))
    gap = (one - two).norm() / ((one.norm() ** 2 + two.norm() ** 2) / 2) ** 0.5
    assert pair.relative_error == pytest.approx(float(gap), rel=1e-4)
    assert pair.cosine == pytest.approx(float(torch.cosine_similarity(one, two, dim=-1).mean()), rel=1e-4)
    runs = []
    for reft in (a, b):
        logits = gpt2.run_with_hooks(batch.tokens, fwd_hooks=reft.fwd_hooks(batch)).detach()
        runs.append(batch.at_last_prompt_token(logits).log_softmax(-1))
    kl = (runs[0].exp() * (runs[0] - runs[1])).sum(-1).mean()
    assert pair.kl == pytest.approx(float(kl), rel=1e-3)


class Tenth(rl.Positions):
    """The tenth token, of prompts that have one."""

    def pick(self, prompts):
        return prompts.mask & (prompts.place == 9)

    def spec(self):
        return {}


@pytest.mark.parametrize("positions", [pytest.param("f2+l2", marks=pytest.mark.slow), Tenth()])
def test_prompts_in_groups_give_what_they_give_together(gpt2, positions) -> None:
    """Only one prompt has a tenth token. A group without one is not made."""

    def edit(seed: int) -> rl.Reft:
        wide, narrow = make_edit(rl.LoReFT, seed=seed), make_edit(rl.LoReFT, rank=1, seed=seed)
        return rl.Reft([(rl.Site(NAME, positions), wide), (rl.Site(NAME, rl.Last(1)), narrow)])

    a, b, *null = map(edit, range(1, 5))
    batch = rl.encode(gpt2, PROMPTS)
    one_prompt = 4 * 9 * gpt2.cfg.d_vocab + 8 * batch.tokens.shape[1] * 6 * 64
    found = [
        agreement(gpt2, {"a": a, "b": b}, batch, null=null, n_null=5, n_probes=2, memory_bytes=memory_bytes)[0]
        for memory_bytes in (2**30, 2 * one_prompt, 1)
    ]
    assert found[0].kl > 1e-3
    assert math.isfinite(found[0].turned_kl)
    for field in dataclasses.fields(found[0]):
        together, *apart = (getattr(pair, field.name) for pair in found)
        for value in apart:
            assert value == (pytest.approx(together, rel=1e-6, nan_ok=True) if isinstance(value, float) else together)


def test_directions_that_do_the_same_to_the_outputs_coincide_in_the_output_metric(gpt2) -> None:
    """The second edit writes the mean of the coordinates besides, which no later layer sees."""
    a, b, other = (rl.DiReFT(32, 1) for _ in range(3))
    generator = torch.Generator().manual_seed(0)
    push = torch.randn(32, generator=generator)
    push -= push.mean()
    with torch.no_grad():
        for edit, write in ((a, push), (b, push + 2.0), (other, torch.randn(32, generator=generator))):
            edit.write.copy_(write[None])
            edit.read.weight.copy_(0.1 * torch.randn(1, 32, generator=torch.Generator().manual_seed(1)))
            edit.read.bias.fill_(1.0)
    edits = {"a": site(a, "l1"), "b": site(b, "l1"), "other": site(other, "l1")}
    found = {(p.first, p.second): p for p in agreement(gpt2, edits, PROMPTS, n_null=40, n_probes=32)}
    same, apart = found["a", "b"], found["a", "other"]
    assert same.angle > 45
    assert same.output_angle < 0.1
    assert same.kl < 1e-6
    # The same difference in another direction is seen.
    assert same.turned_kl > 1e3 * same.kl
    assert same.output_null_low < same.output_null_angle < 90
    assert apart.output_angle > same.output_null_low
    assert same.null_low > 30
    assert math.isnan(same.output_trained_angle)
    assert math.isnan(same.p_output_angle)
    (bare,) = agreement(gpt2, {name: edits[name] for name in "ab"}, PROMPTS, n_null=5, n_probes=0)
    assert math.isnan(bare.output_angle)
    null = [edits["other"], site(make_edit(rl.LoReFT, rank=1), "l1")]
    (judged,) = agreement(gpt2, {name: edits[name] for name in "ab"}, PROMPTS, null=null, rank=1, n_null=5)
    assert judged.p_output_angle == pytest.approx(1 / 6)
    assert judged.output_trained_low <= judged.output_trained_angle


def test_p_is_the_rank_among_pairs_with_edits_of_shuffled_answers(gpt2) -> None:
    a, b, *null = (site(make_edit(rl.LoReFT, seed=seed)) for seed in (1, 2, 3, 4, 5))
    batch = rl.encode(gpt2, PROMPTS)
    (pair,) = agreement(gpt2, {"a": a, "b": b}, [batch], null=null, rank=1, n_null=5)
    ((_, h),) = edited_activations(gpt2, a, batch)
    edits = [a, b, *null]
    changes = [next(iter(reft))[1].delta(h).detach().double() for reft in edits]
    # The strongest write direction is the first right singular vector of the changes.
    strongest = [torch.linalg.svd(change, full_matrices=False).Vh[0] for change in changes]
    said = []
    for reft in edits:
        logits = gpt2.run_with_hooks(batch.tokens, fwd_hooks=reft.fwd_hooks(batch)).detach()
        said.append(batch.at_last_prompt_token(logits).double().log_softmax(-1))
    far = {"cosine": [], "kl": [], "angle": []}
    for i, j in combinations(range(5), 2):
        far["cosine"].append(-float(torch.cosine_similarity(changes[i], changes[j], dim=-1).mean()))
        far["kl"].append(float(((said[i].exp() - said[j].exp()) * (said[i] - said[j])).sum(-1).mean()))
        far["angle"].append(-float((strongest[i] @ strongest[j]).abs()))
    for name, p in (("cosine", pair.p_cosine), ("kl", pair.p_kl), ("angle", pair.p_angle)):
        assert p == pytest.approx(sum(value <= far[name][0] for value in far[name]) / 10), name
    assert pair.null_cosine == pytest.approx(-sum(far["cosine"][1:]) / 9, abs=1e-5)
    assert (pair.n_null_edits, pair.n_null_pairs) == (3, 10)
    (same,) = agreement(gpt2, {"a": a, "b": a}, [batch], null=dict(zip("cde", null, strict=True)), n_null=5)
    assert same.p_cosine == same.p_kl == same.p_angle == pytest.approx(0.1)
    assert "smallest p 0.1" in same.headline()
    (bare,) = agreement(gpt2, {"a": a, "b": a}, [batch], n_null=5)
    assert "no claim without edits trained on shuffled answers" in bare.headline()
    assert math.isnan(bare.p_cosine)
    assert bare.n_null_pairs == 0
    elsewhere = site(make_edit(rl.LoReFT, seed=3), name="blocks.2.hook_resid_post")
    with pytest.raises(ValueError, match="null edits for a and b must edit the same points"):
        agreement(gpt2, {"a": a, "b": b}, [batch], null=[elsewhere], n_null=5)


def test_a_change_that_depends_on_other_tokens_is_computed_under_the_whole_mask(gpt2) -> None:
    edit = site(make_edit(rl.ReFTr1), rl.All())
    (pair,) = agreement(gpt2, {"a": edit, "b": edit}, [rl.encode(gpt2, PROMPTS)], at=rl.Last(1), n_null=5)
    assert pair.cosine == pytest.approx(1.0)
    assert pair.relative_error == 0.0


@pytest.mark.slow
def test_edits_that_share_only_their_site_are_close_as_often_as_p_says(gpt2) -> None:
    """All edits have one push in common, as training at one site gives it; nothing else."""
    generator, batch, common = torch.Generator().manual_seed(0), rl.encode(gpt2, PROMPTS[:1]), torch.ones(32)
    low = above = 0
    for draw in range(80):
        pushes = [common + torch.randn(32, generator=generator) for _ in range(7)]
        a, b, *null = (site(rl.SteeringVector.of(push), rl.Last(1)) for push in pushes)
        (pair,) = agreement(gpt2, {"a": a, "b": b}, [batch], null=null, n_null=1, seed=draw)
        low += pair.p_cosine <= 0.05
        above += pair.cosine > pair.control_cosine + 0.2
    # 1/21 of pairs are the closest of theirs; up to 10 of 80 are within 99%.
    assert low <= 10
    assert above > 50, "beyond the turned control, which is no null of trained edits"


@pytest.mark.slow
def test_null_edits_are_trained_on_other_answers_from_other_first_weights(gpt2) -> None:
    reft, config = site(make_edit(rl.LoReFT)), rl.TrainConfig(epochs=1, progress=False)
    examples = EXAMPLES * 2
    _, edit = null_edits(gpt2, reft, examples, config, n=2, seed=7)
    again = untrained(reft, seed=8)
    rl.train(gpt2, again, permuted_labels(examples, seed=8), dataclasses.replace(config, seed=8))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in edit.state_dict().items())
    with pytest.raises(ValueError, match=f"seeds must not include {config.seed}"):
        null_edits(gpt2, reft, examples, config, n=2, seed=config.seed - 1)


def test_it_can_look_at_some_tokens_alone(gpt2) -> None:
    a, b = (site(make_edit(rl.LoReFT, seed=seed), rl.All()) for seed in (1, 2))
    last_only = [rl.Reft([(rl.Site(NAME, rl.Last(1)), next(iter(reft))[1])]) for reft in (a, b)]
    batch = rl.encode(gpt2, PROMPTS)
    (some,) = agreement(gpt2, {"a": a, "b": b}, [batch], at=rl.Last(1), n_null=5)
    (last,) = agreement(gpt2, dict(zip("ab", last_only, strict=True)), [batch], n_null=5)
    (every,) = agreement(gpt2, {"a": a, "b": b}, [batch], n_null=5)
    assert some.cosine == pytest.approx(last.cosine, abs=1e-5)
    assert some.relative_error == pytest.approx(last.relative_error, abs=1e-5)
    assert some.angle == pytest.approx(last.angle, abs=1e-2)
    assert abs(some.cosine - every.cosine) > 1e-3


def test_edits_of_other_layers_are_compared_by_what_is_said_alone(gpt2) -> None:
    a, b = site(make_edit(rl.LoReFT)), site(make_edit(rl.LoReFT, seed=2), name="blocks.2.hook_resid_post")
    (pair,) = agreement(gpt2, {"a": a, "b": b}, [rl.encode(gpt2, PROMPTS)], n_null=5)
    assert pair.sites == ()
    assert math.isnan(pair.cosine)
    assert math.isnan(pair.angle)
    assert pair.kl > 0
    with pytest.raises(ValueError, match="two edits"):
        agreement(gpt2, {"a": a}, [rl.encode(gpt2, PROMPTS)])


def test_an_edit_that_is_not_affine_is_compared_as_a_function(gpt2) -> None:
    a, b = (site(make_edit(rl.ReFTr1, seed=seed)) for seed in (1, 1))
    (pair,) = agreement(gpt2, {"a": a, "b": b}, [rl.encode(gpt2, PROMPTS)], n_null=5)
    assert pair.relative_error == pytest.approx(0.0, abs=1e-5)
    assert math.isnan(pair.angle)


def test_untrained_is_the_same_edit_with_fresh_weights() -> None:
    shared = make_edit(rl.LoReFT)
    reft = rl.Reft([(rl.Site(NAME, "f1"), shared), (rl.Site(NAME, "l1"), shared)], scales={"edit": 0.5})
    before = shared.R.clone()
    fresh = untrained(reft, seed=3)
    assert fresh.sites == reft.sites
    assert fresh.scales == reft.scales
    assert fresh.n_parameters() == reft.n_parameters(), "sharing is kept"
    assert not torch.allclose(next(iter(fresh))[1].R, before)
    assert torch.equal(next(iter(untrained(reft, seed=3)))[1].R, next(iter(fresh))[1].R)
    assert torch.equal(shared.R, before)


def test_nulls_change_what_they_say_and_nothing_else(gpt2) -> None:
    shuffled = permuted_labels(EXAMPLES * 4, seed=1)
    assert [prompt for prompt, _ in shuffled] == [prompt for prompt, _ in EXAMPLES * 4]
    assert sorted(c for _, c in shuffled) == sorted(c for _, c in EXAMPLES * 4)
    assert shuffled != EXAMPLES * 4
    reft = site(make_edit(rl.LoReFT))
    moved = at_random_sites(gpt2, reft, seed=0)
    assert moved.sites[0].hook_name in ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post")
    assert moved.sites[0].positions == reft.sites[0].positions
    everywhere = rl.Reft.at_layers(gpt2, layers="all", positions="l1", rank=2)
    with pytest.raises(ValueError, match="needs 3 other blocks"):
        at_random_sites(gpt2, everywhere, seed=0)
    fresh = random_model(gpt2, seed=1)
    logits = [b(rl.encode(b, PROMPTS).tokens) for b in (gpt2, fresh, random_model(gpt2, seed=1))]
    assert logits[0].shape == logits[1].shape
    assert not torch.allclose(logits[0], logits[1])
    assert torch.equal(logits[1], logits[2])


@pytest.mark.slow
def test_seeds_train_apart_and_leave_the_given_edit(gpt2) -> None:
    reft = site(make_edit(rl.LoReFT))
    before = {name: value.clone() for name, value in reft.state_dict().items()}
    trained = rl.train_seeds(gpt2, reft, EXAMPLES, rl.TrainConfig(epochs=2, progress=False), seeds=(0, 1))
    assert list(trained) == ["seed 0", "seed 1"]
    assert all(torch.equal(before[name], value) for name, value in reft.state_dict().items())
    start = untrained(reft, seed=0)
    assert not torch.equal(next(iter(start))[1].source.bias, next(iter(trained["seed 0"]))[1].source.bias)
    wide = site(make_edit(rl.LoReFT, rank=4))
    ranks = rl.train_seeds(
        gpt2, {"rank 3": reft, "rank 4": wide}, EXAMPLES, rl.TrainConfig(epochs=2, progress=False), seeds=(0,)
    )
    assert {name: next(iter(edit))[1].rank for name, edit in ranks.items()} == {
        "rank 3, seed 0": 3,
        "rank 4, seed 0": 4,
    }
    for name, value in ranks["rank 3, seed 0"].state_dict().items():
        assert torch.equal(value, trained["seed 0"].state_dict()[name]), "the same start, order and end"
    with pytest.raises(ValueError, match="seeds must differ"):
        rl.train_seeds(gpt2, reft, EXAMPLES, seeds=(1, 1))
