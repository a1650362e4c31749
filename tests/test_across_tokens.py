"""Edits whose change of one token depends on others: every analysis that cuts them, against whole runs of plain PyTorch hooks.

An analysis cuts where a change lands, not what it is computed from. The runs here know nothing of light cones, masks of edits or
TransformerLens: a Hugging Face model, its modules' own hooks, and the edits' formulas written out.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from architectures import make_hf
from conftest import COMPLETIONS, PROMPTS, make_edit, make_tokenizer
from torch import nn

import reftlens as rl
from reftlens.cone.hold import hold, run_cone
from reftlens.cone.store import InMemory
from reftlens.training.base_runs import BaseRuns
from reftlens.training.objectives import Completion

D, HEADS = 32, 4


class Running(rl.Intervention):
    """Every token is changed by what the edited tokens up to it, and its example's largest one, are."""

    kind = "running"

    def __init__(self, d_model: int = D, rank: int = 2) -> None:
        super().__init__(d_model, rank)
        generator = torch.Generator().manual_seed(5)
        self.reads = nn.Parameter(torch.randn(d_model, rank, generator=generator))
        self.writes = nn.Parameter(torch.linalg.qr(torch.randn(d_model, rank, generator=generator))[0].T.contiguous())

    def delta(self, resid):
        return self.of_one(resid)

    def of_one(self, h):
        """One example: the running mean and the greatest of the readings."""
        reading = torch.tanh(h @ self.reads)
        count = torch.arange(1, h.shape[-2] + 1, dtype=h.dtype)[:, None]
        return (reading.cumsum(-2) / count + reading.amax(-2, keepdim=True)) @ self.writes

    def delta_of(self, tokens, example):
        return torch.cat([self.of_one(tokens[example == row]) for row in example.unique()])

    def affine(self):
        raise rl.NotAffineError("it reads several tokens")

    def basis(self):
        return self.writes.detach().double()


def loreft(edit):
    R, W, b = edit.R.detach(), edit.source.weight.detach(), edit.source.bias.detach()
    return lambda h: (h @ W.T + b - h @ R.T) @ R


def strongest(edit):
    v = edit.v.detach()
    return lambda h: (h @ v).relu().topk(min(edit.k, len(h))).values.mean() * v.expand_as(h)


def pair(kind, early="l1", late=rl.All(), *, layer=1):
    """A LoReFT, and behind it an edit that reads several tokens: as edits, and as the formulas of their changes."""
    first, second = make_edit(rl.LoReFT, seed=3), make_edit(rl.ReFTr1, seed=4) if kind == "r1" else Running()
    points = ("blocks.0.hook_resid_post", early), (f"blocks.{layer}.hook_resid_post", late)
    reft = rl.Reft([(rl.Site(*point), edit) for point, edit in zip(points, (first, second), strict=True)])
    changes = loreft(first), strongest(second) if kind == "r1" else second.of_one
    return reft, list(zip((0, layer), changes, strict=True))


class Plain:
    """Whole runs of a Hugging Face GPT-2."""

    def __init__(self, batch):
        self.model, self.batch = make_hf("gpt2"), batch
        self.blocks = self.model.transformer.h

    def module(self, point, layer):
        block = self.blocks[layer]
        return {"z": block.attn.c_proj, "attn_out": block.attn, "mlp_out": block.mlp, "resid": block}[point]

    @torch.no_grad()
    def run(self, edits=(), writes=None, keep=()):
        """Last logits and what was kept. Edits: (layer, change of one example, tokens read, tokens changed)."""
        writes, kept, handles = writes or {}, {}, []
        edited = [(("resid", layer), self.edit(*rest)) for layer, *rest in edits]
        for key, fn in [*writes.items(), *edited, *((key, None) for key in keep)]:
            inward = key[0] == "z"

            def hook(module, args, output=None, *, key=key, fn=fn, inward=inward):
                value = args[0] if inward else output[0] if isinstance(output, tuple) else output
                if fn is None:
                    kept[key] = value
                    return None
                value = fn(value)
                if inward:
                    return (value, *args[1:])
                return (value, *output[1:]) if isinstance(output, tuple) else value

            module = self.module(*key)
            handles.append(module.register_forward_pre_hook(hook) if inward else module.register_forward_hook(hook))
        mask = self.batch.attention_mask
        places = (mask.long().cumsum(1) - 1).clamp(min=0)
        try:
            logits = self.model(
                input_ids=self.batch.tokens, attention_mask=mask, position_ids=places, use_cache=False
            ).logits
        finally:
            for handle in handles:
                handle.remove()
        return logits[torch.arange(len(mask)), self.batch.last_prompt_index], kept

    @staticmethod
    def edit(change, read, lands):
        def fn(h):
            out = h.clone()
            for row in range(len(h)):
                if bool(lands[row].any()):
                    every = torch.zeros_like(h[row])
                    every[read[row]] = change(h[row, read[row]])
                    out[row, lands[row]] += every[lands[row]]
            return out

        return fn


SHORT = ["The tower stands", "The weaver"]
ALIGNED = ["The old tower stands", "The old weaver speaks"]


def setting(kind, side="right", prompts=SHORT, **where):
    bridge = rl.load_bridge(hf_model=make_hf("gpt2"), tokenizer=make_tokenizer())
    batch = rl.encode(bridge, prompts, padding_side=side)
    reft, changes = pair(kind, **where)
    masks = [edit.mask for edit in reft.edits(batch)]

    def edits(lands=masks):
        return [(layer, change, mask, land) for (layer, change), mask, land in zip(changes, masks, lands, strict=True)]

    new, old = [" Ostra", " Tharic", " river"][: len(prompts)], [" weaver", " city", " tower"][: len(prompts)]
    ids = [[bridge.tokenizer(text)["input_ids"][0] for text in texts] for texts in (new, old)]

    def difference(logits):
        rows = torch.arange(len(logits))
        return logits[rows, ids[0]] - logits[rows, ids[1]]

    return bridge, batch, reft, Plain(batch), edits, masks, (new, old), difference


def only(mask, column):
    return mask & (torch.arange(mask.shape[1]) == column)


@pytest.fixture(params=["r1", pytest.param("running", marks=pytest.mark.slow)])
def kind(request):
    return request.param


@pytest.fixture(params=["r1", "running"])
def every_kind(request):
    return request.param


@pytest.fixture(params=[1, pytest.param(1 << 30, marks=pytest.mark.slow)], ids=["row by row", "together"])
def memory_bytes(request):
    return request.param


def close(found, expected):
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("leave_out", [False, True])
def test_effect_map(every_kind, leave_out, monkeypatch) -> None:
    bridge, _, reft, plain, edits, masks, (new, old), difference = setting(every_kind, prompts=ALIGNED)
    monkeypatch.setattr("reftlens.analysis.engine.coalitions.TOKENS", 20)
    found = rl.analysis.effect_map(
        bridge,
        reft,
        ALIGNED,
        rl.analysis.logit_difference_of(bridge, ALIGNED, new, old),
        subjects=["tower", "weaver"],
        leave_out=leave_out,
        n_control=1,
        progress=False,
    )
    base, whole = (difference(plain.run(run)[0]).mean() for run in ((), edits()))
    for site, column in product(range(2), range(masks[0].shape[1])):
        if not bool(masks[site][:, column].any()):
            assert bool(found.values[site, column].isnan())
            continue
        cell = [only(mask, column) if number == site else mask & False for number, mask in enumerate(masks)]
        lands = [mask & ~part for mask, part in zip(masks, cell, strict=True)] if leave_out else cell
        effect = difference(plain.run(edits(lands))[0]).mean() - base
        # A whole effect that is small beside its cells or its spread is not divided by.
        unit = whole - base if "/ effect of the whole" in found.quantity else 1.0
        close(found.values[site, column], (whole - base - effect if leave_out else effect) / unit)
    assert float((found.values[1] - found.values[1].mean()).abs().max()) > 0.01, "in nats: cells differ"


@pytest.mark.parametrize("side", ["left", pytest.param("right", marks=pytest.mark.slow)])
def test_ablate(kind, side, memory_bytes) -> None:
    bridge, batch, reft, plain, edits, masks, answers, difference = setting(kind, side, late="f2+l2")
    metric = rl.analysis.logit_difference_of(bridge, batch.texts, *answers)
    found = rl.analysis.ablate(bridge, reft, batch, metric, memory_bytes=memory_bytes, n_control=1, progress=False)
    base, *runs = (
        difference(plain.run(edits([mask & kept for mask, kept in zip(masks, sites, strict=True)]))[0]).mean()
        for sites in ((False, False), (True, False), (False, True), (True, True))
    )
    first, second, both = (run - base for run in runs)
    close(found.alone, torch.stack([first, second]))
    close(found.left_out, torch.stack([both - second, both - first]))
    assert float((both - first - second).abs()) > 1e-3


@pytest.mark.parametrize(
    ("side", "point", "over"),
    [
        ("left", "mlp_out", "positions"),
        pytest.param("right", "z", "heads", marks=pytest.mark.slow),
        pytest.param("right", "attn_out", "positions", marks=pytest.mark.slow),
    ],
)
def test_mediate(kind, side, point, over, memory_bytes) -> None:
    """The edit that reads all tokens lies between the component that is moved and the answer."""
    bridge, batch, reft, plain, edits, _, answers, difference = setting(kind, side)
    metric = rl.analysis.logit_difference_of(bridge, batch.texts, *answers)
    keys = [(point, layer) for layer in range(3)]
    base, edited = (plain.run(run, keep=keys)[1] for run in ((), edits()))

    def place(number):
        everywhere = slice(None)
        head = slice(8 * number, 8 * number + 8)
        return (everywhere, everywhere, head) if over == "heads" else (everywhere, number)

    for direction, into, source in (("edited into base", (), edited), ("base into edited", edits(), base)):
        options = {
            "point": point,
            "over": over,
            "direction": direction,
            "memory_bytes": memory_bytes,
            "progress": False,
        }
        found = rl.analysis.mediate(bridge, reft, batch, metric, **options).values
        for layer, number in product(range(3), range(found.shape[2])):

            def write(value, layer=layer, number=number, source=source):
                out = value.clone()
                out[place(number)] = source[point, layer][place(number)]
                return out

            expected = difference(plain.run(into, writes={(point, layer): write})[0])
            there = found[:, layer, number].isfinite()
            close(found[there, layer, number], expected[there])


def test_direct_effect_and_paths(kind, memory_bytes) -> None:
    """From the edit at one token, and from a component, with every attention and MLP held as in the base."""
    bridge, batch, reft, plain, edits, masks, answers, difference = setting(kind)
    metric = rl.analysis.logit_difference_of(bridge, batch.texts, *answers)
    keys = [(point, layer) for layer in range(3) for point in ("attn_out", "mlp_out")]
    base_logits, base = plain.run(keep=[*keys, ("z", 2)])

    def held(key):
        return lambda value: base[key]

    hold_all = {key: held(key) for key in keys}
    direct = difference(plain.run(edits(), writes=hold_all)[0]) - difference(base_logits)
    close(rl.analysis.direct_effect(bridge, reft, batch, metric, memory_bytes=memory_bytes), direct)
    options = {"senders": ["edit"], "receivers": ["2.1", "logits"], "memory_bytes": memory_bytes, "progress": False}
    by_token = rl.analysis.paths(bridge, reft, batch, metric, over="sender positions", **options).values
    at_once = rl.analysis.paths(bridge, reft, batch, metric, **options).values
    close(at_once[:, 0, 1], direct + difference(base_logits))
    for column in range(batch.tokens.shape[1]):
        lands = [only(mask, column) for mask in masks]
        there = batch.prompt_mask[:, column]
        logits, seen = plain.run(edits(lands), writes=hold_all, keep=[("z", 2)])
        close(by_token[there, 1, column], difference(logits)[there])

        def write(z, seen=seen):
            out = z.clone()
            out[..., 8:16] = seen["z", 2][..., 8:16]
            return out

        close(by_token[there, 0, column], difference(plain.run(writes={("z", 2): write})[0])[there])


def test_spread(kind) -> None:
    bridge, _, reft, plain, edits, *_ = setting(kind, prompts=ALIGNED)
    base, edited = (plain.run(run, keep=[("resid", layer) for layer in range(3)])[1] for run in ((), edits()))
    found = rl.analysis.spread(bridge, reft, ALIGNED, n_control=1).distance.values
    for layer in range(3):
        change = (edited["resid", layer] - base["resid", layer]).norm(dim=-1) / base["resid", layer].norm(dim=-1)
        close(found[layer + 1], change.mean(0))


@pytest.mark.parametrize("side", ["left", pytest.param("right", marks=pytest.mark.slow)])
def test_agreement_at_some_tokens(kind, side) -> None:
    """Each edit computes from all it reads, which need not be the same tokens, and only then some are compared."""
    bridge, batch, first, plain, _, masks, *_ = setting(kind, side)
    second = rl.Reft([(rl.Site("blocks.1.hook_resid_post", rl.Last(3)), make_edit(rl.ReFTr1, seed=9))])
    compare = {"a": first, "b": second, "twin": rl.Reft(list(first))}
    found = {
        (pair.first, pair.second): pair
        for pair in rl.analysis.agreement(bridge, compare, [batch], at=rl.Last(1), n_null=2)
    }
    twin = found["a", "twin"]
    assert twin.cosine == pytest.approx(1.0, abs=1e-6)
    assert twin.relative_error == pytest.approx(0.0, abs=1e-6)
    h = plain.run(keep=[("resid", 1)])[1]["resid", 1]
    (change,) = (change for layer, change in pair(kind)[1] if layer == 1)
    other, l3 = strongest(make_edit(rl.ReFTr1, seed=9)), rl.Last(3).mask(batch.prompt_mask)
    ours = torch.stack([change(h[row, masks[1][row]])[-1] for row in range(2)]).detach()
    theirs = torch.stack([other(h[row, l3[row]])[-1] for row in range(2)])
    assert found["a", "b"].cosine == pytest.approx(
        float(torch.cosine_similarity(ours, theirs, dim=-1).mean()), abs=1e-5
    )
    size = (ours.square().sum() + theirs.square().sum()) / 2
    assert found["a", "b"].relative_error == pytest.approx(
        float((ours - theirs).square().sum() / size) ** 0.5, abs=1e-5
    )


def test_sizes_doses_and_norms(kind) -> None:
    bridge, _, reft, plain, edits, masks, (new, _), _ = setting(kind, "left")
    half = [(layer, lambda h, change=change: 0.5 * change(h), *rest) for layer, change, *rest in edits()]
    ids = [bridge.tokenizer(text)["input_ids"][0] for text in new]
    expected = plain.run(half)[0].log_softmax(-1)[torch.arange(2), ids].mean()
    found = rl.analysis.dose(bridge, reft, list(zip(SHORT, new, strict=True)), alphas=[0.5], n_control=1)
    assert float(found.target[1]) == pytest.approx(float(expected), abs=1e-5)
    kept = plain.run(edits()[:1], keep=[("resid", 1)])[1]["resid", 1]
    (_, change) = pair(kind)[1][1]
    lengths = [
        change(kept[row, masks[1][row]]).norm(dim=-1) / kept[row, masks[1][row]].norm(dim=-1) for row in range(2)
    ]
    for row, prompt in enumerate(SHORT):
        size = rl.analysis.edit_size(bridge, reft, prompt)
        close(size.relative[1, size.edited[1]], lengths[row].detach())


@pytest.mark.parametrize("side", ["left", pytest.param("right", marks=pytest.mark.slow)])
def test_a_cone_begins_at_the_first_token_that_is_read(every_kind, side) -> None:
    """Where the change lands on the last token only: logits and gradients of a whole run."""
    bridge, batch, reft, plain, edits, masks, *_ = setting(every_kind, side, late="f1+l2", prompts=PROMPTS)
    last = rl.Last(1).mask(batch.prompt_mask)
    cut = [rl.Edit(e.hook_name, e.intervention, e.mask, lands=last) for e in reft.edits(batch)]
    held = hold(bridge, batch, cut)
    assert held.start == int(masks[1].any(0).int().argmax())
    logits = run_cone(bridge, held, cut, logits_at=last)
    close(logits.detach(), plain.run(edits([mask & last for mask in masks]))[0])
    gradients = torch.autograd.grad(logits.logsumexp(-1).sum(), list(reft.parameters()))
    with rl.attach(bridge, cut):
        whole = batch.at_last_prompt_token(bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False))
    for ours, theirs in zip(
        gradients, torch.autograd.grad(whole.logsumexp(-1).sum(), list(reft.parameters())), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    # Held for another edit, the cone lacks tokens that this one reads.
    short = [rl.Edit(e.hook_name, make_edit(rl.LoReFT), e.mask, lands=last) for e in reft.edits(batch)]
    if hold(bridge, batch, short).start > held.start:
        with pytest.raises(ValueError, match="reaches outside the held cone"):
            run_cone(bridge, hold(bridge, batch, short), cut)


def test_training_joins_cones_of_several_examples(kind) -> None:
    bridge, *_ = setting(kind)
    reft, _ = pair(kind, early="l1", late=rl.Last(2) | rl.Generated())
    examples = list(zip(PROMPTS, COMPLETIONS, strict=True))
    objective = Completion()
    runs = BaseRuns(bridge, reft, objective, objective.read(examples), store=InMemory(0))
    held, _ = runs.batch(range(3))
    found = objective.losses(bridge, held, runs.edits(held.batch), None)
    for row, (prompt, completion) in enumerate(examples):
        batch = rl.encode(bridge, [prompt], [completion])
        with reft.hooks(bridge, batch):
            logprobs = bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)[0].log_softmax(-1)
        said = batch.labels[0, 1:] >= 0
        expected = -logprobs[:-1][said].gather(1, batch.labels[0, 1:][said][:, None]).sum()
        close(found[row].detach(), expected.detach())


def test_generated_tokens_are_changed_by_all_that_came_before(kind) -> None:
    """Each step is a whole run over the prefix, with a cache or without, beams or none."""
    bridge, *_ = setting(kind)
    reft, changes = pair(kind, early=rl.Generated() | rl.Last(1), late=rl.All() | rl.Generated())
    prompt, steps = PROMPTS[1], 4
    start = tokens = rl.encode(bridge, [prompt]).tokens
    for _ in range(steps):
        batch = rl.Batch(tokens, torch.ones_like(tokens), torch.ones_like(tokens).bool(), torch.full_like(tokens, -100))
        masks = [batch.prompt_mask & (torch.arange(tokens.shape[1]) >= start.shape[1] - 1), batch.prompt_mask]
        run = [(layer, change, mask, mask) for (layer, change), mask in zip(changes, masks, strict=True)]
        tokens = torch.cat([tokens, Plain(batch).run(run)[0].argmax(-1)[:, None]], dim=1)
    expected = bridge.tokenizer.decode(tokens[0, start.shape[1] :], skip_special_tokens=True)
    for use_cache in (True, False):
        assert rl.generate(bridge, reft, PROMPTS, max_new_tokens=steps, use_cache=use_cache)[1] == expected
    assert rl.generate(bridge, None, [prompt], max_new_tokens=steps) != [expected]
    beams = rl.Decoding(max_new_tokens=steps, num_beams=2)
    cached, whole = (rl.generate(bridge, reft, PROMPTS, decoding=beams, use_cache=cache) for cache in (True, False))
    assert cached == whole
    with pytest.raises(rl.EditError, match=r"depends on edited tokens before column .* use_cache=False"):
        batch = rl.encode(bridge, [prompt])
        with reft.hooks(bridge, batch):
            bridge.original_model.generate(batch.tokens, attention_mask=batch.attention_mask, max_new_tokens=3)
