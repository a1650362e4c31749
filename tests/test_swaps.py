"""Interchange, dose, off-manifold and top contexts against hand-made truths and slow twins."""

from __future__ import annotations

import pytest
import torch
from conftest import COMPLETIONS, PROMPTS, make_edit

import reftlens as rl
from reftlens.analysis import decompose, dose, interchange, off_manifold, read_space, top_contexts
from reftlens.analysis.engine.activations import edited_activations
from reftlens.analysis.engine.pathways import dormant_share
from reftlens.benchmark.handmade import attention_reads_it, illusion, illusion_in_residual
from reftlens.benchmark.nulls import uniform_p
from reftlens.data import first_tokens

NAME = "blocks.1.hook_resid_post"
EXAMPLES = list(zip(PROMPTS, COMPLETIONS, strict=True))


def site(intervention, positions=None, name=NAME) -> rl.Reft:
    return rl.Reft([(rl.Site(name, positions or rl.All()), intervention)])


# Interchange.


@pytest.fixture(scope="module")
def variable():
    return attention_reads_it()


@pytest.fixture(scope="module")
def toy():
    return illusion()


def swap_variable(model, direction, **options):
    return interchange(
        model.bridge,
        "blocks.0.hook_resid_post",
        direction,
        model.base,
        model.source,
        at=rl.First(1),
        **{"n_random": 10, "n_placebo": 10} | options,
    )


def test_swapping_the_variable_flips_every_answer_and_the_complement_none(variable) -> None:
    result = swap_variable(variable, variable.true)
    assert result.n == result.n_given == 64
    assert result.inside.flips == result.whole.flips == 1.0
    assert result.inside.moved == pytest.approx(1.0, abs=0.01)
    assert result.complement.flips == 0.0
    assert result.complement.moved == pytest.approx(0.0, abs=0.01)
    assert max(swap.flips for swap in result.random) < 0.5
    assert max(swap.moved for swap in result.random) < 0.5
    assert result.p == pytest.approx(1 / 11)
    assert not result.illusory
    assert len(result.to_dataframe()) == 7


def test_a_direction_without_the_variable_does_nothing(variable) -> None:
    other = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    other -= (other @ variable.true.T) @ variable.true + other.mean()
    result = swap_variable(variable, other - (other @ variable.true.T) @ variable.true)
    assert result.inside.flips == 0.0
    assert result.complement.flips == 1.0


def test_an_interchange_equals_one_written_out(variable) -> None:
    model, B = variable, torch.linalg.qr(torch.randn(16, 2, generator=torch.Generator().manual_seed(1))).Q
    result = swap_variable(model, B.T)
    name = "blocks.0.hook_resid_post"
    _, cache = model.bridge.run_with_cache(model.source.tokens, names_filter=[name])

    def hook(resid, hook):
        new = resid[:, 0] + (cache[name][:, 0] - resid[:, 0]) @ B @ B.T
        return torch.cat([new[:, None], resid[:, 1:]], dim=1)

    runs = [model.bridge(model.base.tokens), model.bridge(model.source.tokens)]
    runs.append(model.bridge.run_with_hooks(model.base.tokens, fwd_hooks=[(name, hook)]))
    base, source, swapped = (run[:, -1] for run in runs)
    old, new = base.argmax(-1)[:, None], source.argmax(-1)[:, None]
    differences = [(run.gather(1, new) - run.gather(1, old))[:, 0] for run in (base, source, swapped)]
    moved = (differences[2] - differences[0]) / (differences[1] - differences[0]).mean()
    assert result.inside.each == pytest.approx(moved.tolist(), abs=1e-4)
    assert result.inside.moved == pytest.approx(float(moved.mean()), abs=1e-4)
    assert len(result.pairs) == result.n
    assert result.inside.flips == pytest.approx(float((swapped.argmax(-1) == new[:, 0]).float().mean()))


def test_makelovs_illusion_is_flagged_and_the_truth_is_not(toy) -> None:
    point = "blocks.0.mlp.hook_post"
    read = read_space(toy.bridge, point, toy.base)
    assert len(read.basis) == 2
    torch.testing.assert_close(read.split(torch.eye(64)[:4]), torch.tensor([0.0, 1.0, 1.0, 0.0]), rtol=0, atol=1e-4)
    true, fake = (
        interchange(toy.bridge, point, direction, toy.base, toy.source, n_random=10, n_placebo=5)
        for direction in (toy.true, toy.illusory)
    )
    assert true.inside.flips == fake.inside.flips == 1.0, "accuracy cannot tell them apart"
    assert fake.p < 0.1
    assert fake.illusory
    assert not true.illusory
    # A reading counts by how much it is read: a hair of the true one is lost, nothing of the fake one is found.
    assert fake.from_read.moved == pytest.approx(0.0, abs=0.01)
    assert true.from_unread.moved == pytest.approx(0.0, abs=0.03)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("make", [illusion, illusion_in_residual])
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_faint_irrelevant_readings_change_no_verdict(make, weight) -> None:
    toy = make(n_pairs=8, weight=weight)
    point = "blocks.0.mlp.hook_post" if make is illusion else "blocks.0.hook_resid_post"
    true, fake = (
        interchange(toy.bridge, point, direction, toy.base, toy.source, n_random=1, n_placebo=1)
        for direction in (toy.true, toy.illusory)
    )
    assert true.inside.flips == fake.inside.flips == 1.0
    # By hand: the fake one moves only neurons that stand still in a whole interchange, the true one only those that move.
    assert (true.dormant, fake.dormant) == (pytest.approx(0.0, abs=1e-3), pytest.approx(1.0, abs=1e-3))
    assert (true.verdict, fake.verdict) == ("not illusory", "illusory")
    assert fake.power > 0.5


def test_where_an_illusion_would_take_the_natural_way_there_is_no_verdict() -> None:
    """The same neurons read what varies and what does not, so no way tells the two apart."""
    toy = illusion_in_residual(n_pairs=8)
    mlp = toy.bridge.original_model.transformer.h[1].mlp
    both = toy.read[0] + 2 * toy.read[1]
    with torch.no_grad():
        weight = dict(mlp.named_parameters())
        name = next(name for name in weight if name.endswith("weight") and weight[name].shape == (16, 64))
        weight[name][:, :4] = torch.stack([both, -both, 0 * both, 0 * both], dim=1)
    for direction in (toy.true, toy.illusory):
        result = interchange(
            toy.bridge, "blocks.0.hook_resid_post", direction, toy.base, toy.source, n_random=1, n_placebo=1
        )
        assert result.inside.moved > 0.9
        assert result.verdict == "no power"
        assert "no power" in result.headline()
    last = interchange(
        toy.bridge, "blocks.1.hook_resid_post", toy.read[2:], toy.base, toy.source, n_random=1, n_placebo=1
    )
    assert last.verdict == "no power", "no unit lies behind the last block"


def test_the_dormant_share_is_counted_unit_by_unit() -> None:
    natural, found = torch.tensor([3.0, 1.0, -1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, 1.0])
    # Scaled by 1: units 0 and 1 are covered, 2 goes the other way naturally, 3 stands still.
    assert dormant_share(natural, found) == pytest.approx(0.5)
    # Twice as far in all: scaled down to the natural sum of 4.
    assert dormant_share(natural, 2 * found) == pytest.approx(0.5)
    assert dormant_share(natural, natural) == pytest.approx(0.0)
    assert dormant_share(natural, torch.tensor([-1.0, 0.0, 0.0, 2.0])) == pytest.approx(1.0)
    assert dormant_share(0 * natural, found) != dormant_share(0 * natural, found), "nan: nothing moves the answer"


def test_what_cannot_be_interchanged_is_refused(variable) -> None:
    model = variable
    with pytest.raises(ValueError, match="same answer"):
        interchange(model.bridge, "blocks.0.hook_resid_post", model.true, model.base, model.base, at=rl.First(1))
    with pytest.raises(ValueError, match="selects 2 in row 0"):
        interchange(model.bridge, "blocks.0.hook_resid_post", model.true, model.base, model.source, at=rl.First(2))
    with pytest.raises(ValueError, match="next-token logits do not depend"):
        read_space(model.bridge, "blocks.1.hook_resid_post", model.base, at=rl.First(1))


def test_the_read_space_of_a_layernorm_leaves_out_the_mean(gpt2) -> None:
    read = read_space(gpt2, "blocks.2.hook_resid_post", rl.encode(gpt2, PROMPTS))
    assert float(read.split(torch.ones(1, 32))) < 1e-6
    assert float(read.split(torch.randn(1, 32, generator=torch.Generator().manual_seed(0)))) > 0.5
    assert read.n_gradients >= 64


# Dose.


def test_dose_passes_through_base_and_edit_and_its_slope_is_the_derivative(bridge, make_reft) -> None:
    reft = make_reft(hook_names=("blocks.0.hook_resid_post", NAME), positions=rl.All())
    result = dose(bridge, reft, EXAMPLES, kept=PROMPTS[:2], alphas=(-0.002, 0.002, 1.0), n_control=2, batch_size=2)
    assert result.alpha.tolist() == pytest.approx([-0.002, 0.0, 0.002, 1.0])
    batch, answer = rl.encode(bridge, PROMPTS), first_tokens(bridge, PROMPTS, COMPLETIONS)[:, None]
    base = bridge(batch.tokens, attention_mask=batch.attention_mask)
    edited = bridge.run_with_hooks(batch.tokens, attention_mask=batch.attention_mask, fwd_hooks=reft.fwd_hooks(batch))
    for place, run in ((1, base), (3, edited)):
        logprobs = batch.at_last_prompt_token(run.detach()).log_softmax(-1)
        assert float(result.target[place]) == pytest.approx(float(logprobs.gather(1, answer).mean()), abs=1e-4)
    finite = float(result.target[2] - result.target[0]) / 0.004
    assert result.slope == pytest.approx(finite, rel=0.05, abs=0.01)
    assert float(result.kl[1]) == pytest.approx(0.0, abs=1e-6)
    assert float(result.kl[3]) > 0
    assert abs(result.control_slope - result.slope) > 1e-3
    assert len(result.to_dataframe()) == 4


def test_dose_without_prompts_that_stay_has_no_kl(gpt2, make_reft) -> None:
    result = dose(gpt2, make_reft(), EXAMPLES, alphas=(1.0,), n_control=1)
    assert bool(torch.isnan(result.kl).all())
    with pytest.raises(ValueError, match="at least one example"):
        dose(gpt2, make_reft(), [])


# Off-manifold.


def many(bridge, n: int, *, seed: int = 0):
    """Batches of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    words = [" tower", " river", " city", " weaver", " old", " Ostra", " speaks", " the", " of", " stands"]
    picks = torch.randint(len(words), (n, 12), generator=generator).tolist()
    texts = ["The" + "".join(words[i] for i in row) for row in picks]
    return [rl.encode(bridge, texts[i : i + 8]) for i in range(0, n, 8)]


@pytest.mark.slow
def test_natural_activations_are_spread_over_all_percentiles(gpt2) -> None:
    edit = make_edit(rl.LoReFT)
    (result,) = off_manifold(gpt2, site(edit, rl.Last(1)), many(gpt2, 360))
    assert result.n_fit == result.n_reference == len(result.natural) == 120
    assert uniform_p((result.natural.double() / 100).tolist()) > 0.01
    assert 0 < result.shrinkage < 0.5


def test_an_estimate_from_the_tested_tokens_themselves_would_not_be_honest(gpt2) -> None:
    """The reason for three parts: few tokens, fitted and tested at once, all look close."""
    few, _ = many(gpt2, 24), 0
    edit = site(make_edit(rl.LoReFT), rl.Last(1))
    (honest,) = off_manifold(gpt2, edit, few)
    (cheating,) = off_manifold(gpt2, edit, [few[0], few[1], few[0]])
    assert float(cheating.natural.mean()) < float(honest.natural.mean())


def test_a_far_push_is_off_and_no_push_is_not(gpt2) -> None:
    class Shift(rl.Intervention):
        kind = "shift"

        def __init__(self, size: float) -> None:
            super().__init__(32, 1)
            self.push = size * torch.nn.functional.normalize(
                torch.randn(32, generator=torch.Generator().manual_seed(0)), dim=0
            )

        def delta(self, resid):
            return self.push.expand_as(resid)

        def affine(self):
            from reftlens.interventions import Affine

            return Affine(torch.zeros(1, 32), torch.zeros(1, 32), self.push)

    batches = many(gpt2, 120)
    (far,) = off_manifold(gpt2, site(Shift(1000.0), rl.Last(1)), batches)
    (near,) = off_manifold(gpt2, site(Shift(1e-6), rl.Last(1)), batches)
    assert far.beyond()[1] == far.beyond()[2] == 1.0
    torch.testing.assert_close(near.edited, near.natural, rtol=0, atol=2.0)
    assert near.beyond()[1] == pytest.approx(near.beyond()[0], abs=0.02)
    h = torch.cat([edited_activations(gpt2, site(Shift(0.0), rl.Last(1)), batch)[0][1] for batch in batches[2::3]])
    pushed = (h + Shift(1000.0).push).norm(dim=-1) / h.norm(dim=-1)
    torch.testing.assert_close(far.norm_ratio, pushed, rtol=1e-4, atol=1e-4)
    assert list(far.to_dataframe()["beyond the 95th"])[1:] == [1.0, 1.0]
    with pytest.raises(ValueError, match="three batches"):
        off_manifold(gpt2, site(Shift(1.0)), batches[:2])


def test_distances_use_the_shrunk_covariance_of_the_fit_part(gpt2) -> None:
    batches = many(gpt2, 72)
    edit = site(make_edit(rl.LoReFT), rl.Last(1))
    (result,) = off_manifold(gpt2, edit, batches)
    fit, reference, test = (
        torch.cat([edited_activations(gpt2, edit, batch)[0][1] for batch in batches[i::3]]).double() for i in range(3)
    )
    mean, S, n, p = fit.mean(0), torch.cov(fit.T, correction=0), len(fit), 32
    target = S.trace() / p * torch.eye(p, dtype=torch.float64)
    rho = ((1 - 2 / p) * (S @ S).trace() + S.trace() ** 2) / ((n + 1 - 2 / p) * ((S @ S).trace() - S.trace() ** 2 / p))
    assert result.shrinkage == pytest.approx(min(1.0, float(rho)), rel=1e-6)
    inverse = torch.linalg.inv((1 - result.shrinkage) * S + result.shrinkage * target)
    scale, own = (torch.einsum("td,de,te->t", h - mean, inverse, h - mean) for h in (reference, test))
    expected = torch.stack([100 * (scale < value).double().mean() for value in own])
    torch.testing.assert_close(result.natural.double(), expected, rtol=0, atol=1e-3)


# Top contexts.


def test_top_contexts_are_the_largest_readings(bridge, make_reft) -> None:
    reft, batches = make_reft(positions=rl.All()), [rl.encode(bridge, PROMPTS[:2]), rl.encode(bridge, PROMPTS[2:])]
    operators = decompose(bridge, reft, batches)
    found = top_contexts(bridge, reft, operators, batches, directions=2, top=3, n_null=20)
    assert [(item.hook_name, item.direction) for item in found] == [(NAME, 0), (NAME, 1)]
    readings, names = [], []
    for batch in batches:
        ((edit, h),) = edited_activations(bridge, reft, batch)
        readings.append(h.detach() @ operators[0].read[0])
        names += [bridge.tokenizer.decode([token]) for token in batch.tokens[edit.mask].tolist()]
    values = torch.cat(readings)
    z = (values - values.mean()) / values.std(correction=0)
    order = z.argsort(descending=True)[:3].tolist()
    assert [c.tokens[c.position] for c in found[0].contexts] == [names[i] for i in order]
    assert [c.z for c in found[0].contexts] == pytest.approx([float(z[i]) for i in order], abs=1e-3)
    assert found[0].n_tokens == len(values)
    assert "[[" in found[0].to_dataframe()["context"][0]
    with pytest.raises(ValueError, match="one entry for each site"):
        top_contexts(bridge, reft, [], batches)


def test_one_text_is_listed_once_and_only_wanted_tokens_are(gpt2, make_reft) -> None:
    reft, batches = make_reft(positions=rl.All()), [rl.encode(gpt2, PROMPTS), rl.encode(gpt2, PROMPTS[:2])]
    operators = decompose(gpt2, reft, batches, at=rl.Last(1))
    (found,) = top_contexts(gpt2, reft, operators, batches, at=rl.Last(1), directions=1, n_null=5)
    assert len(found.contexts) == len({c.tokens for c in found.contexts}) == 3
    assert all(c.position == len(c.tokens) - 1 for c in found.contexts)
    assert found.n_tokens == 5


def test_a_reading_of_one_token_finds_it_beyond_the_null(gpt2) -> None:
    batches = [*many(gpt2, 80), rl.encode(gpt2, [f"The {word} Tharic" for word in ("old", "city", "river", "tower")])]
    token = gpt2.tokenizer(" Tharic")["input_ids"][0]
    edit = rl.DiReFT(32, 1)
    seen = [edited_activations(gpt2, site(edit, name="blocks.0.hook_resid_pre"), batch)[0] for batch in batches]
    h = torch.cat([states for _, states in seen])
    tokens = torch.cat([batch.tokens[e.mask] for batch, (e, _) in zip(batches, seen, strict=True)])
    there = (tokens == token).double()
    # The linear reading that tells this token best from the others.
    fitted = torch.linalg.lstsq(h.double() - h.double().mean(0), (there - there.mean())[:, None]).solution[:, 0]
    with torch.no_grad():
        edit.read.weight.copy_(fitted[None])
        edit.read.bias.fill_(1.0)
    reft = site(edit, name="blocks.0.hook_resid_pre")
    operators = decompose(gpt2, reft, batches)
    (found,) = top_contexts(gpt2, reft, operators, batches, directions=1, top=4, n_null=50)
    sign = float(operators[0].read[0] @ fitted.float())
    # The sign of a write direction is that of its mean change: negative here, the token is at the other end.
    assert sign > 0, "the planted reading must point to its token"
    assert {c.tokens[c.position] for c in found.contexts} == {" Tharic"}
    assert min(c.z for c in found.contexts) > found.null_high


def test_a_push_reads_nothing(gpt2) -> None:
    push = rl.SteeringVector(32)
    with torch.no_grad():
        push.vector.fill_(0.5)
    batches = [rl.encode(gpt2, PROMPTS)]
    reft = site(push)
    (found,) = top_contexts(gpt2, reft, decompose(gpt2, reft, batches), batches, n_null=5)
    assert found.contexts == ()
