"""Interchange training: losses against whole runs by plain hooks, annealed masks, and what is refused."""

from __future__ import annotations

import pytest
import torch
from conftest import make_bridge, make_edit

import reftlens as rl
from reftlens.cone.store import InMemory
from reftlens.training.base_runs import BaseRuns

FIRST, SECOND = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
PARTS = {"left": 2, "right": 3}
EXAMPLES = [
    ("The tower stands in the city of", "The weaver speaks", " Ostra", "left", " Tharic"),
    ("The weaver speaks", "The old tower by the river stands in the old city of", " Tharic", "right", " Ostra"),
    ("The old tower by the river stands in the old city of", "The tower stands", " Ostra", "left+right", " Tharic"),
]


def split_edit() -> rl.Reft:
    edits = [make_edit(rl.SplitInterchange, 32, 5, seed=seed) for seed in (1, 2)]
    for edit in edits:
        edit.parts = PARTS
        edit.take(None)
    return rl.Reft([(rl.Site(FIRST, rl.Last(1)), edits[0]), (rl.Site(SECOND, rl.First(1) | rl.Last(1)), edits[1])])


@torch.no_grad()
def losses_alone(bridge, reft, objective, examples) -> torch.Tensor:
    return losses(bridge, reft, objective, examples)


def losses(bridge, reft, objective, examples) -> torch.Tensor:
    """As training computes them: on the cone, from held runs, in one batch."""
    objective.bind(reft)
    runs = BaseRuns(bridge, reft, objective, objective.read(examples), store=InMemory(2**24))
    held, reference = runs.batch(range(len(examples)))
    return objective.losses(bridge, held, runs.edits(held.batch), reference)


def swapped_logits(bridge, reft, base: rl.Batch, source: rl.Batch, variable: str) -> torch.Tensor:
    """The slow twin: whole runs of one prompt, with hooks written out."""
    seen, writes = {}, []
    reads = [(name, lambda h, hook: seen.update({hook.name: h.detach()})) for name in (FIRST, SECOND)]
    bridge.run_with_hooks(source.tokens, fwd_hooks=reads)
    activations = list(seen.values())
    for (site, edit), s in zip(reft, activations, strict=True):
        R = edit.R if isinstance(edit, rl.Interchange) else torch.cat(
            [edit.R[:2] if name == "left" else edit.R[2:] for name in variable.split("+")]
        )  # fmt: skip

        def write(h, hook, R=R, s=s, site=site):
            here, there = (site.positions.mask(batch.prompts)[0] for batch in (base, source))
            out = h.clone()
            out[0, here] = h[0, here] + (s[0, there] - h[0, here]) @ R.T @ R
            return out

        writes.append((site.hook_name, write))
    return bridge.run_with_hooks(base.tokens, fwd_hooks=writes)[0]


def label_logprobs(logits, batch) -> torch.Tensor:
    labels = batch.labels[0]
    places = (labels != -100).nonzero().flatten()
    return logits[places - 1].log_softmax(-1), labels[places]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_loss_is_that_of_whole_runs_with_plain_hooks(architecture, dtype, tolerance) -> None:
    if dtype is torch.float64 and architecture != "gpt2":
        pytest.skip("transformers computes its softmax in float32")
    bridge, reft = make_bridge(architecture, dtype=dtype), split_edit().to(dtype)
    examples = [example[:4] for example in EXAMPLES]
    found = losses(bridge, reft, rl.objectives.Interchange(["left", "right"]), examples)
    wanted, plain = [], []
    for base, source, label, variable in examples:
        batch = rl.encode(bridge, [base], [label])
        for store, chosen in ((wanted, variable), (plain, "left")):
            said, ids = label_logprobs(swapped_logits(bridge, reft, batch, rl.encode(bridge, [source]), chosen), batch)
            store.append(-said.gather(1, ids[:, None]).sum())
    torch.testing.assert_close(found, torch.stack(wanted).to(found), rtol=tolerance, atol=tolerance)
    assert not torch.allclose(found[1:], torch.stack(plain)[1:].to(found), atol=1e-3), "the variables must differ"
    (grad,) = torch.autograd.grad(found.sum(), [reft[0][1].rotation.weight], retain_graph=True)
    assert float(grad.norm()) > 0
    assert reft[0][1].source is None, "a source must not outlive its batch"


def test_matching_is_the_divergence_of_whole_runs_in_both_directions(gpt2) -> None:
    reft = rl.Reft([(rl.Site(FIRST, rl.Last(1)), make_edit(rl.Interchange, rank=4)), (rl.Site(SECOND, rl.Last(1)), make_edit(rl.Interchange, rank=4, seed=3))])  # fmt: skip
    examples = [(*example[:3], "variable", example[4]) for example in EXAMPLES]
    found = losses_alone(gpt2, reft, rl.objectives.InterchangeMatching(), examples)
    for example, loss in zip(examples, found, strict=True):
        base, source, label, _, own = example
        total = 0.0
        for one, other, answer in ((base, source, label), (source, base, own)):
            here, there = (rl.encode(gpt2, [text], [answer]) for text in (one, other))
            p, _ = label_logprobs(swapped_logits(gpt2, reft, here, there, "variable"), here)
            q, _ = label_logprobs(gpt2(there.tokens)[0], there)
            m = (p.exp() + q.exp()) / 2
            total += 0.5 * ((p.exp() * (p - m.log())).sum() + (q.exp() * (q - m.log())).sum())
        torch.testing.assert_close(loss, total, rtol=1e-5, atol=1e-5)


def test_swapping_the_whole_activation_matches_the_source_exactly(gpt2) -> None:
    """After the last block, the last token decides all, so the divergence in both directions is zero."""
    base, source = "The tower stands in the city of", "The weaver speaks"
    for rank, zero in ((32, True), (2, False)):
        reft = rl.Reft([(rl.Site("blocks.2.hook_resid_post", rl.Last(1)), make_edit(rl.Interchange, rank=rank))])
        examples = [(base, source, "T", "variable", "O")]
        (loss,) = losses_alone(gpt2, reft, rl.objectives.InterchangeMatching(), examples)
        assert (float(loss) < 1e-6) == zero


@pytest.mark.slow
def test_an_annealed_boundary_ends_hard_and_is_saved_so(gpt2, tmp_path) -> None:
    edit = rl.BoundlessInterchange(32, {"left": 6})
    soft = edit.gates()
    assert bool(((soft > 0) & (soft < 1)).all())
    assert bool((soft.diff() < 0).all()), "earlier rows come first"
    reft = rl.Reft([(rl.Site(SECOND, rl.Last(1)), edit)])
    config = rl.TrainConfig(epochs=1, batch_size=3, lr=1e-2, l1=0.5, progress=False)
    examples = [(*example[:3], "left") for example in EXAMPLES]
    rl.train(gpt2, reft, examples, config, objective=rl.objectives.Interchange("left"))
    assert edit.gates().tolist() == [1.0] * edit.widths()["left"] + [0.0] * (6 - edit.widths()["left"])
    reft.save_pretrained(tmp_path / "edit", bridge=gpt2)
    ((_, again),) = rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2)
    assert torch.equal(again.gates(), edit.gates())
    assert again.subspace("left").shape == (edit.widths()["left"], 32)


@pytest.mark.parametrize("kind", [rl.BoundlessInterchange, rl.MaskedInterchange])
def test_colder_gates_are_harder_and_the_penalty_is_their_mean(kind) -> None:
    edit = make_edit(kind, 16, 4)
    far = []
    for progress in (0.0, 0.5, 0.9, 1.0):
        edit.anneal(progress)
        gates = edit.gates().detach()
        far.append(float(torch.minimum(gates, 1 - gates).sum()))
        torch.testing.assert_close(edit.l1(torch.zeros(3, 16), torch.zeros(3).long(), 2), gates.mean().expand(2))
    assert far == sorted(far, reverse=True)
    assert far[-1] == 0 < far[0]


def test_a_mask_over_features_swaps_the_chosen_ones() -> None:
    """Over all features of an orthonormal basis it is the whole activation; over a dictionary, the error stays the base's."""
    h, s = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q.T
    edit = rl.MaskedInterchange.over(basis).double()
    edit.mask.data[:] = torch.tensor([1.0, -1.0] * 4)
    edit.anneal(1.0)
    edit.take(s)
    B = edit.write[::2]
    torch.testing.assert_close(edit(h), h + (s - h) @ B.T @ B)
    assert edit.widths() == {"variable": 4}
    read, write, bias = torch.randn(6, 8).double(), torch.randn(6, 8).double(), torch.randn(6).double()
    features = rl.MaskedInterchange.over_dictionary(read, write, bias, relu=True).double()
    features.mask.data[:] = 1.0
    features.anneal(1.0)
    features.take(s)
    read, write, bias = features.read, features.write, features.bias
    there, here = ((x @ read.T + bias).relu() @ write for x in (s, h))
    torch.testing.assert_close(features(h), there + (h - here))
    with pytest.raises(rl.NotAffineError, match="positive parts"):
        features.take(s[0])
        features.affine()


def test_what_cannot_be_swapped_is_refused(gpt2) -> None:
    config, objective = rl.TrainConfig(progress=False), rl.objectives.Interchange(["left", "right"])
    examples = [example[:4] for example in EXAMPLES]

    def at(*edits):
        return rl.Reft([(rl.Site(f"blocks.{place}.hook_resid_post", rl.Last(1)), e) for place, e in enumerate(edits)])

    one, shared = rl.Interchange(32, 2), rl.SplitInterchange(32, PARTS)
    for reft, message in (
        (at(rl.LoReFT(32, 2)), "must be edited by an interchange.*got LoReFT"),
        (at(one), "must have a part for each of left, right, but has one variable without a name"),
        (at(rl.SplitInterchange(32, {"left": 2})), "but has left: use rl.SplitInterchange"),
        (at(shared, shared), "shares its interchange with another site"),
        (None, "there is no edit"),
    ):
        with pytest.raises(ValueError, match=message):
            rl.train(gpt2, reft, examples, config, objective=objective)
    with pytest.raises(ValueError, match="example 1 swaps right, but the objective is for left"):
        rl.train(gpt2, at(one), examples, config, objective=rl.objectives.Interchange("left"))
    uneven = rl.Reft([(rl.Site(FIRST, rl.All()), rl.Interchange(32, 2))])
    with pytest.raises(ValueError, match="choose positions that select equally many tokens of both"):
        rl.train(gpt2, uneven, [EXAMPLES[0][:3]], config, objective=rl.objectives.Interchange())
    with pytest.raises(ValueError, match="Unknown variable 'up'"):
        shared.take(torch.zeros(1, 32), ["left+up"])
