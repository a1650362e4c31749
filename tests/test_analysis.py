"""Analyses against planted truths and slow twins; controls must show nothing."""

from __future__ import annotations

import sys

import pytest
import torch
from conftest import AFFINE, PROMPTS, make_bridge, make_edit, make_hf

import reftlens as rl
from reftlens.analysis.controls.turned import Turned
from reftlens.analysis.engine.activations import edited_activations
from reftlens.analysis.tokens import logit_difference
from reftlens.interventions import FAMILY
from reftlens.results import Operator

NAME = "blocks.1.hook_resid_post"
ONE_LENGTH = ["The tower stands in the city of", "The weaver stands in the city of"]


def first_token(bridge, answer) -> int:
    return bridge.tokenizer(answer, add_special_tokens=False)["input_ids"][0]


def one_site(intervention, positions=None, name=NAME) -> rl.Reft:
    return rl.Reft([(rl.Site(name, positions or rl.All()), intervention)])


def deltas(bridge, reft, batch):
    ((edit, h),) = edited_activations(bridge, reft, batch)
    return h.detach().double(), edit.intervention.delta(h).detach().double()


class Push(rl.Intervention):
    """Push: h + c, the plainest edit, to plant truths with."""

    kind = "push"

    def __init__(self, constant: torch.Tensor) -> None:
        super().__init__(len(constant), 1)
        self.constant = torch.nn.Parameter(constant)

    def delta(self, resid):
        return self.constant.expand_as(resid)

    def affine(self):
        from reftlens.interventions import Affine

        zero = torch.zeros(1, len(self.constant))
        return Affine(zero, zero, self.constant)


# The operator.


@pytest.mark.sampled(8)
@pytest.mark.parametrize("kind", AFFINE)
def test_operator_equals_the_svd_of_all_changes(bridge, make_reft, kind) -> None:
    reft = make_reft(kind=kind, rank=4, positions=rl.All())
    batches = [rl.encode(bridge, PROMPTS[:2]), rl.encode(bridge, PROMPTS[2:])]
    (operator,) = rl.analysis.decompose(bridge, reft, batches)
    h, change = (torch.cat(parts) for parts in zip(*(deltas(bridge, reft, batch) for batch in batches), strict=True))
    _, spectrum, vectors = torch.linalg.svd(change / len(change) ** 0.5, full_matrices=False)
    rank = len(operator.spectrum)
    torch.testing.assert_close(operator.spectrum.double(), spectrum[:rank], rtol=1e-4, atol=1e-6)
    anywhere = int(torch.linalg.matrix_rank(change, rtol=1e-6))
    assert rank == {rl.LobiReFT: 1, rl.SteeringVector: 1, rl.RED: anywhere, rl.Rescale: anywhere}.get(kind, 4)
    assert float(spectrum[rank:].sum()) < 1e-5
    overlap = (operator.write.double() * vectors[:rank]).sum(-1).abs()
    torch.testing.assert_close(overlap, torch.ones(rank, dtype=torch.float64), rtol=0, atol=1e-4)
    along = change @ operator.write.double().T
    torch.testing.assert_close(h @ operator.read.double().T + operator.constant, along, rtol=1e-3, atol=1e-4)
    assert bool((along.mean(0) > -1e-6).all()), "signs follow the mean change"
    torch.testing.assert_close(
        operator.constant_share.double(), along.mean(0) ** 2 / spectrum[:rank] ** 2, rtol=1e-3, atol=1e-5
    )
    centred = h - h.mean(0)
    pattern = torch.nn.functional.normalize((centred.T @ centred @ operator.read.double().T).T, dim=-1)
    moving = operator.constant_share < 1 - 1e-4
    torch.testing.assert_close(operator.pattern[moving].double(), pattern[moving], rtol=0, atol=2e-3)
    assert operator.rank_for(1.0) <= rank
    assert operator.n_tokens == len(h)
    assert operator.rms_norm == pytest.approx(float(h.square().sum(-1).mean().sqrt()), rel=1e-4)


def test_operator_does_not_depend_on_how_the_edit_is_written(gpt2) -> None:
    edit, turned = rl.LoReFT(32, 4), rl.LoReFT(32, 4)
    Q = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0))).Q
    with torch.no_grad():
        turned.rotation.weight.copy_(Q @ edit.R)
        turned.source.weight.copy_(Q @ edit.source.weight)
        turned.source.bias.copy_(Q @ edit.source.bias)
    batch = rl.encode(gpt2, PROMPTS)
    (one,), (two,) = (rl.analysis.decompose(gpt2, one_site(e), [batch]) for e in (edit, turned))
    assert float((edit.R * turned.R).detach().sum(-1).abs().max()) < 0.99, "raw R differs"
    torch.testing.assert_close(one.write, two.write, rtol=0, atol=1e-3)
    torch.testing.assert_close(one.read, two.read, rtol=0, atol=1e-3)
    torch.testing.assert_close(one.spectrum, two.spectrum, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(one.pattern, two.pattern, rtol=0, atol=1e-3)


def test_a_planted_rank_is_found_among_more_directions(gpt2) -> None:
    edit = rl.LoReFT(32, 4)
    with torch.no_grad():
        edit.source.weight.copy_(edit.R)
        edit.source.bias.zero_()
        edit.source.weight[:2] += torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    (operator,) = rl.analysis.decompose(gpt2, one_site(edit), [rl.encode(gpt2, PROMPTS)])
    assert len(operator.spectrum) == 2
    assert 1.0 < operator.effective_rank <= 2.0
    inside = operator.write @ edit.R[:2].detach().T
    torch.testing.assert_close(inside @ inside.T, torch.eye(2), rtol=0, atol=1e-4)


def test_a_push_is_one_constant_direction(gpt2) -> None:
    constant = torch.randn(32, generator=torch.Generator().manual_seed(0))
    (operator,) = rl.analysis.decompose(gpt2, one_site(Push(constant)), [rl.encode(gpt2, PROMPTS)])
    torch.testing.assert_close(operator.write[0] * operator.spectrum[0], constant, rtol=1e-4, atol=1e-5)
    assert float(operator.constant_share[0]) == pytest.approx(1.0, abs=1e-5)
    assert operator.effective_rank == pytest.approx(1.0)
    assert operator.rank_for(0.99) == 1
    assert not bool(operator.pattern.any()), "a push reads nothing"
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\]"):
        operator.rank_for(0.0)


def test_operator_can_be_weighted_by_some_tokens_alone(gpt2, make_reft) -> None:
    reft, batch = make_reft(positions=rl.All()), rl.encode(gpt2, PROMPTS)
    (last,) = rl.analysis.decompose(gpt2, reft, [batch], at=rl.Last(1))
    (edit, h), *_ = edited_activations(gpt2, reft, batch)
    change = edit.intervention.delta(h).detach()[rl.Last(1).mask(batch.prompt_mask)[edit.mask]]
    assert last.n_tokens == len(change) == len(PROMPTS)
    torch.testing.assert_close(last.spectrum.square().sum(), change.square().sum() / len(change))
    with pytest.raises(ValueError, match=r"does not edit any token that First\(1\) selects"):
        rl.analysis.decompose(gpt2, make_reft(positions=rl.Last(1)), [batch], at=rl.First(1))


def test_an_edit_that_changes_nothing_has_no_directions(gpt2) -> None:
    for edit in (rl.RED(32), Push(torch.zeros(32))):
        with pytest.raises(ValueError, match=r"blocks\.1\.hook_resid_post does not change"):
            rl.analysis.decompose(gpt2, one_site(edit), [rl.encode(gpt2, PROMPTS)])


def test_decompose_needs_inputs(gpt2, make_reft) -> None:
    with pytest.raises(ValueError, match="list of prompts is empty"):
        rl.analysis.decompose(gpt2, make_reft(), [])


# The placebo.


@pytest.mark.parametrize("kind", FAMILY)
def test_placebo_keeps_lengths_and_angles_and_nothing_else(kind) -> None:
    edit = make_edit(kind, 32, 4)
    placebo = Turned(edit, torch.Generator().manual_seed(0))
    h = torch.randn(20, 32)
    ours, theirs = placebo.delta(h), edit.delta(h)
    torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, rtol=1e-4, atol=1e-4)
    assert float(torch.cosine_similarity(ours, theirs, dim=-1).detach().abs().mean()) < 0.5
    if kind in AFFINE:
        torch.testing.assert_close(placebo.affine().delta(h).float(), ours, rtol=1e-4, atol=1e-4)
    assert (
        len(placebo.basis())
        == len(edit.basis())
        == {rl.RED: 32, rl.Rescale: 32, rl.LobiReFT: 1, rl.SteeringVector: 1, rl.ReFTr1: 1}.get(kind, 4)
    )


# Effect by cell.


def cell_map(bridge, reft, **options):
    metric = rl.analysis.logit_difference_of(bridge, ONE_LENGTH, [" Tharic"] * 2, [" Ostra"] * 2)
    subjects = ["tower", "weaver"]
    return rl.analysis.effect_map(bridge, reft, ONE_LENGTH, metric, subjects=subjects, progress=False, **options)


def test_effect_map_finds_the_planted_cell_and_no_decoy(bridge) -> None:
    torch.manual_seed(0)
    push = Push(torch.randn(32))
    sites = [
        (rl.Site("blocks.0.hook_resid_post", rl.All()), Push(torch.zeros(32))),
        (rl.Site("blocks.1.hook_resid_post", rl.At(2)), push),
        (rl.Site("blocks.2.hook_resid_post", rl.At(0) | rl.At(-1)), Push(torch.zeros(32))),
    ]
    result = cell_map(bridge, rl.Reft(sites))
    expected = torch.full_like(result.values, torch.nan)
    expected[0], expected[1, 2], expected[2, [0, -1]] = 0.0, 1.0, 0.0
    # In nats, where float32 is good to 1e-6: a share divides that error by an effect that is small in a random model.
    batch, answer = rl.encode(bridge, ONE_LENGTH), [first_token(bridge, text) for text in (" Tharic", " Ostra")]
    with torch.no_grad(), rl.Reft(sites).hooks(bridge, batch):
        edited = batch.at_last_prompt_token(bridge(batch.tokens, attention_mask=batch.attention_mask))
    base = batch.at_last_prompt_token(bridge(batch.tokens, attention_mask=batch.attention_mask))
    moved = (edited - base)[:, answer]
    whole = float((moved[:, 0] - moved[:, 1]).mean())
    unit = whole if "/ effect of the whole" in result.quantity else 1.0
    torch.testing.assert_close(result.values * unit, expected * whole, rtol=0, atol=2e-6, equal_nan=True)
    assert float(result.control.nan_to_num().abs().max()) == float(result.control[1, 2].abs()) > 0
    assert result.rows == ("L0 resid_post @ all", "L1 resid_post @ at 2", "L2 resid_post @ at 0 + at -1")
    assert [token for token, star in zip(result.tokens, result.starred, strict=True) if star] == [" tower"]
    assert result.to_dataframe()["value"].sum() == pytest.approx(float(result.values.nansum()))


@pytest.mark.parametrize("leave_out", [False, True])
def test_effect_map_equals_a_plain_hook(gpt2, make_reft, leave_out) -> None:
    reft, hf = make_reft(positions=rl.All(), seed=4), make_hf("gpt2")
    ((_, intervention),) = reft
    result, batch = cell_map(gpt2, reft, leave_out=leave_out), rl.encode(gpt2, ONE_LENGTH)
    target, foil = ([first_token(gpt2, answer)] * 2 for answer in (" Tharic", " Ostra"))

    def effect(columns) -> float:
        def hook(_module, _args, output):
            mask = torch.zeros(output.shape[1], dtype=torch.bool)
            mask[columns] = True
            return torch.where(mask[:, None], intervention(output), output)

        runs = []
        for hooks in ([], [hook]):
            handles = [hf.transformer.h[1].register_forward_hook(h) for h in hooks]
            runs.append(hf(batch.tokens).logits.detach())
            for handle in handles:
                handle.remove()
        base, edited = (logit_difference(run, batch, torch.tensor(target), torch.tensor(foil)) for run in runs)
        return float((edited - base).mean())

    columns = list(range(batch.tokens.shape[1]))
    whole = effect(columns)
    for pos in columns:
        expected = whole - effect([p for p in columns if p != pos]) if leave_out else effect([pos])
        unit = whole if "/ effect of the whole" in result.quantity else 1.0
        assert float(result.values[0, pos]) == pytest.approx(expected / unit, abs=1e-4)


def test_effect_map_refuses_what_it_cannot_compare(gpt2, make_reft) -> None:
    metric = rl.analysis.logit_difference_of(gpt2, ONE_LENGTH, [" Tharic"] * 2, [" Ostra"] * 2)
    with pytest.raises(ValueError, match="equal length"):
        rl.analysis.effect_map(gpt2, make_reft(), [PROMPTS[0], PROMPTS[2]], metric, progress=False)
    with pytest.raises(ValueError, match="the metric was made for the answers of 2 prompts"):
        rl.analysis.effect_map(gpt2, make_reft(), ONE_LENGTH[:1], metric, progress=False)
    with pytest.raises(ValueError, match="begin with the same token"):
        rl.analysis.logit_difference_of(gpt2, ONE_LENGTH, [" Tharic"] * 2, [" Tharic"] * 2)
    with pytest.raises(ValueError, match="no effect to locate"):
        cell_map(gpt2, one_site(Push(torch.zeros(32))))


# Edit size.


def test_edit_size_is_the_ratio_of_norms(bridge, make_reft) -> None:
    reft = make_reft(positions="f2+l1")
    result = rl.analysis.edit_size(bridge, reft, PROMPTS[2], subject="old tower")
    batch = rl.encode(bridge, [PROMPTS[2]])
    h, change = deltas(bridge, reft, batch)
    assert result.edited.tolist() == reft.edits(batch.prompt_mask)[0].mask.tolist()
    torch.testing.assert_close(result.relative[result.edited].double(), change.norm(dim=-1) / h.norm(dim=-1))
    assert float(result.relative[~result.edited].abs().max()) == 0.0
    assert "".join(t for t, star in zip(result.tokens, result.starred, strict=True) if star).strip() == "old tower"
    with pytest.raises(ValueError, match="is not in the prompt in row 0"):
        rl.analysis.edit_size(bridge, reft, PROMPTS[2], subject="new tower")


# The ledger.


@pytest.mark.sampled(8)
@pytest.mark.parametrize("kind", AFFINE)
def test_the_three_terms_sum_to_the_change(bridge, make_reft, kind) -> None:
    reft = make_reft(positions="f2+l1", kind=kind, rank=4).scaled(0.5)
    result = rl.analysis.ledger(bridge, reft, PROMPTS[2], subject="old tower")
    h, change = deltas(bridge, reft, rl.encode(bridge, [PROMPTS[2]]))
    edited = ~torch.isnan(result.norm)
    assert float(result.gap.max()) < 1e-5
    torch.testing.assert_close(result.norm[edited].double(), h.norm(dim=-1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.change[edited].double(), 0.5 * change.norm(dim=-1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        result.gram[edited].sum((-1, -2)).double().sqrt(), 0.5 * change.norm(dim=-1), rtol=1e-3, atol=1e-4
    )
    rotated = (rl.Interchange, rl.SplitInterchange, rl.BoundlessInterchange)
    erases = kind in (rl.LoReFT, rl.ConsReFT, rl.NoReFT, rl.SplitLoReFT, *rotated)
    assert bool(result.length[edited][:, 0].any()) == erases
    assert len(result.to_dataframe()) == int(edited.sum()) == 3


def test_the_terms_of_a_loreft_are_its_equation(gpt2, make_reft) -> None:
    reft = make_reft(positions=rl.All())
    ((_, edit),) = reft
    result = rl.analysis.ledger(gpt2, reft, PROMPTS[0])
    h, _ = deltas(gpt2, reft, rl.encode(gpt2, [PROMPTS[0]]))
    R, W, b = (t.detach().double() for t in (edit.R, edit.source.weight, edit.source.bias))
    terms = torch.stack([-h @ R.T @ R, (b @ R).expand_as(h), h @ W.T @ R], dim=1)
    torch.testing.assert_close(result.gram[0].double(), terms @ terms.mT, rtol=1e-4, atol=1e-4)
    assert float(result.null_cosine[0]) == pytest.approx(3**-0.5)


def test_terms_that_cancel_are_seen_to(gpt2) -> None:
    edit = rl.LoReFT(32, 4)
    with torch.no_grad():
        edit.source.weight.copy_(0.999 * edit.R)
        edit.source.bias.zero_()
    result = rl.analysis.ledger(gpt2, one_site(edit), PROMPTS[0])
    torch.testing.assert_close(result.cosine[0, :, 0, 2], -torch.ones(result.norm.shape[1]), rtol=0, atol=1e-4)
    assert float((result.change / result.length[..., 0]).max()) < 0.01


def test_a_scaled_edit_is_scaled_in_every_analysis(gpt2, make_reft) -> None:
    reft, batch = make_reft(positions=rl.All()), rl.encode(gpt2, PROMPTS)
    (whole,), (half,) = (rl.analysis.decompose(gpt2, r, [batch]) for r in (reft, reft.scaled(0.5)))
    torch.testing.assert_close(half.spectrum, 0.5 * whole.spectrum, rtol=1e-4, atol=1e-6)
    sizes = [rl.analysis.edit_size(gpt2, r, PROMPTS[0]).relative for r in (reft, reft.scaled(0.5))]
    torch.testing.assert_close(sizes[1], 0.5 * sizes[0])


# The readout of write directions.


def test_readout_finds_the_token_whose_unembedding_was_written(bridge) -> None:
    token = first_token(bridge, " Tharic")
    unembedding = bridge.W_U[:, token].detach()
    (operator,) = rl.analysis.decompose(bridge, one_site(Push(10 * unembedding)), [rl.encode(bridge, PROMPTS)])
    options = {"watch": [" Tharic"], "n_null": 99}
    (readout,) = rl.analysis.read_directions(bridge, operator, rl.encode(bridge, PROMPTS), **options)
    assert readout.watched == ((" Tharic", pytest.approx(readout.promoted[0][1]), pytest.approx(0.01)),)
    word, change = readout.promoted[0]
    assert word == bridge.tokenizer.decode([token])
    assert change > readout.null_high
    assert all(a >= b for (_, a), (_, b) in zip(readout.promoted, readout.promoted[1:], strict=False))
    assert readout.suppressed[0][1] <= readout.suppressed[-1][1] < 0


def test_random_directions_pass_the_null_as_often_as_it_says(gpt2) -> None:
    generator = torch.Generator().manual_seed(9)
    batch, beyond, p_values = rl.encode(gpt2, PROMPTS[:1]), 0, []
    for _ in range(60):
        constant = torch.randn(32, generator=generator)
        (operator,) = rl.analysis.decompose(gpt2, one_site(Push(3 * constant / constant.norm())), [batch])
        (readout,) = rl.analysis.read_directions(gpt2, operator, batch, top=1, n_null=100, watch=[" tower"])
        p_values.append(readout.watched[0][2])
        beyond += readout.promoted[0][1] > readout.null_high
    assert beyond <= 9, f"{beyond} of 60 random directions pass a 5% null"
    uniform = torch.arange(1, 61) / 60
    assert float((torch.tensor(p_values).sort().values - uniform).abs().max()) < 0.21, "p-values are not uniform"


def random_operator(name: str, *, generator: torch.Generator, d: int = 32) -> Operator:
    """Two perpendicular directions that have nothing to do with any token, of lengths 3 and 1."""
    write = torch.linalg.qr(torch.randn(d, 2, generator=generator)).Q.T
    zeros, sizes = torch.zeros(2), torch.tensor([3.0, 1.0])
    return Operator(name, write, 0 * write, sizes, sizes, zeros + 1, 10.0, 1, 0 * write)


def test_all_that_is_looked_at_together_passes_as_often_as_one_test_should(gpt2) -> None:
    """Four directions of two sites, all tokens, both signs: today's two 5% tails of each had a third of all draws."""
    generator, batch, draws = torch.Generator().manual_seed(4), rl.encode(gpt2, PROMPTS[:1]), 60
    beyond = named = 0
    for _ in range(draws):
        operators = [random_operator(name, generator=generator) for name in ("one", "two")]
        found = rl.analysis.read_directions(gpt2, operators, batch, top=1, n_null=19, watch=[" tower", " city", " old"])
        beyond += any(r.promoted[0][1] > r.null_high or r.suppressed[0][1] < r.null_low for r in found)
        named += min(p for r in found for p in r.p_all) <= 0.05
    # Up to 8 of 60 are within 99% of the binomial distribution at 5%.
    assert beyond <= 8
    assert named <= 8
    assert [(r.hook_name, r.direction) for r in found] == [("one", 0), ("one", 1), ("two", 0), ("two", 1)]
    assert all((r.n_directions, r.n_watched, r.n_tokens) == (4, 3, gpt2.cfg.d_vocab_out) for r in found)
    assert f"band of all {gpt2.cfg.d_vocab_out} tokens x 4 directions" in found[0].headline()
    assert "p of 12 looks" in found[0].watched_to_dataframe().columns
    with pytest.raises(ValueError, match="n_null must be at least 19 for a 95% band, got 18"):
        rl.analysis.read_directions(gpt2, operators, batch, n_null=18)


def test_the_corrected_p_counts_the_best_of_all_named_tokens_in_each_draw(gpt2) -> None:
    operators = [random_operator("one", generator=torch.Generator().manual_seed(1))]
    batch, words, n = rl.encode(gpt2, PROMPTS[:1]), [" tower", " city"], 59
    found = rl.analysis.read_directions(gpt2, operators, batch, watch=words, n_null=n, seed=5)
    generator, ids = torch.Generator().manual_seed(5), [first_token(gpt2, word) for word in words]
    state = gpt2.run_with_cache(batch.tokens)[1]["blocks.2.hook_resid_post"][:, -1].detach()

    def change(push: torch.Tensor) -> torch.Tensor:
        logits = [gpt2.unembed(gpt2.ln_final(h[:, None]))[0, 0] for h in (state + push, state)]
        return (logits[0] - logits[1]).detach()[ids]

    scaled, own = [], []
    for row, size in zip(operators[0].write, operators[0].spectrum, strict=True):
        null = torch.stack([change(size * u / u.norm()) for u in torch.randn(n, 32, generator=generator)])
        moved = change(size * row)
        rms = ((null.square().sum(0) + moved.square()) / (n + 1)).sqrt()
        scaled.append((null.abs() / rms).amax(1))
        own.append(moved.abs() / rms)
    best = torch.stack(scaled).amax(0)
    for readout, values in zip(found, own, strict=True):
        expected = [(1 + int((best >= value * (1 - 1e-5)).sum())) / (1 + n) for value in values]
        assert readout.p_all == pytest.approx(expected, abs=1.5 / (1 + n))
        assert all(p <= q for (_, _, p), q in zip(readout.watched, readout.p_all, strict=True))


# Causal tracing.


def test_trace_equals_a_plain_hook_and_restores_the_only_differing_token(architecture) -> None:
    bridge, hf = make_bridge(architecture), make_hf(architecture)
    clean, corrupted = ONE_LENGTH[:1], ONE_LENGTH[1:]
    result = rl.analysis.trace(
        bridge,
        clean,
        corrupted,
        rl.analysis.probability_of(bridge, clean, [" Ostra"]),
        subjects=["tower"],
        unrelated=clean,
        progress=False,
    )
    torch.testing.assert_close(result.values, result.control)
    batches = [rl.encode(bridge, prompts) for prompts in (clean, corrupted)]
    differs = (batches[0].tokens != batches[1].tokens)[0]
    assert int(differs.sum()) == 1
    place = int(differs.nonzero())
    assert float(result.values[0, place]) == pytest.approx(1.0, abs=1e-4)
    assert float(result.values[:, :place].abs().max()) < 1e-5
    target, blocks = first_token(bridge, " Ostra"), hf.transformer.h if architecture == "gpt2" else hf.model.layers
    states = hf(batches[0].tokens, output_hidden_states=True).hidden_states

    def probability(tokens, layer=None, pos=None) -> float:
        def hook(_module, args, kwargs):
            h = (args[0] if args else kwargs["hidden_states"]).clone()
            h[:, pos] = states[layer][:, pos]
            return ((h, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": h})

        handle = blocks[layer].register_forward_pre_hook(hook, with_kwargs=True) if layer is not None else None
        value = float(hf(tokens).logits[0, -1].softmax(-1)[target].detach())
        if handle is not None:
            handle.remove()
        return value

    low, high = probability(batches[1].tokens), probability(batches[0].tokens)
    for layer, pos in [(0, place), (1, place), (2, place), (1, place + 2), (2, differs.shape[0] - 1)]:
        expected = (probability(batches[1].tokens, layer, pos) - low) / (high - low)
        assert float(result.values[layer, pos]) == pytest.approx(expected, abs=1e-3)


def test_trace_refuses_prompts_that_do_not_align(gpt2, monkeypatch) -> None:
    metric = rl.analysis.probability_of(gpt2, PROMPTS[:1], [" a"])
    with pytest.raises(ValueError, match="the same shape"):
        rl.analysis.trace(gpt2, PROMPTS[:1], PROMPTS[2:], metric, subjects=["tower"], progress=False)
    # Before the sweep, which may take hours.
    monkeypatch.setattr(sys.modules["reftlens.analysis.trace"], "patch", lambda *_, **__: pytest.fail("swept"))
    with pytest.raises(ValueError, match="nothing to restore"):
        rl.analysis.trace(gpt2, PROMPTS[:1], PROMPTS[:1], metric, subjects=["tower"], progress=False)


# Outcomes.


def test_outcome_counts_what_a_strong_push_does(bridge) -> None:
    token = first_token(bridge, " Tharic")
    push = 200 * bridge.W_U[:, token].detach()
    reft = one_site(Push(push), rl.At(-1), f"blocks.{bridge.cfg.n_layers - 1}.hook_resid_post")
    options = {"group": "g", "wanted": "new answer", "batch_size": 2}
    won = rl.analysis.outcome(bridge, reft, PROMPTS, [" Tharic"] * 3, **options)
    assert (won.n, won.edited, won.group) == (3, 1.0, "g")
    assert won.control < 1.0
    assert won.kl > 0.1
    turned = rl.analysis.outcome(bridge, rl.analysis.turned(reft, seed=0), PROMPTS, [" Tharic"] * 3, **options)
    assert won.control_kl == pytest.approx(turned.kl, rel=1e-4)
    assert won.control_kl != pytest.approx(won.kl, rel=0.01)
    still = rl.analysis.outcome(bridge, one_site(Push(torch.zeros(32))), PROMPTS, [" Tharic"] * 3, **options)
    assert (still.base, still.kl) == (still.edited, pytest.approx(0.0, abs=1e-6))
