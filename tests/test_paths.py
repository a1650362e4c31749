"""Paths from component to component, against whole runs in two ways, and against paths built by hand."""

from __future__ import annotations

import pytest
import torch
from conftest import PROMPTS, make_bridge
from test_mediation import cached, edit_on, metric_on, one_run

import reftlens as rl
from reftlens.benchmark.handmade import two_steps


def point_of(name):
    if name.startswith("mlp"):
        return f"blocks.{name[3:]}.hook_mlp_out", None
    layer, head = name.split(".")
    return f"blocks.{layer}.attn.hook_z", int(head)


def write(name, new, *, pos=None):
    """A hook that puts one component's activation of a cache into the run."""
    point, head = point_of(name)

    def hook_fn(activation, hook):
        place = (slice(None), slice(None) if pos is None else pos, *(() if head is None else (head,)))
        out = activation.clone()
        out[place] = new[point][place]
        return out

    return point, hook_fn


def every_point(bridge):
    return [f"blocks.{layer}.{kind}" for layer in range(3) for kind in ("hook_attn_out", "hook_mlp_out", "attn.hook_z")]


def plainly(bridge, reft, batch, metric, sender, receiver, *, sender_pos=None, receiver_pos=None, through="qkv"):
    """One path by three whole runs: what attention and MLPs add is held, not what heads put out."""
    names = every_point(bridge)
    kinds = [f"blocks.{layer}.attn.hook_{part}" for layer in range(3) for part in "qkv" if part not in through]
    base = cached(bridge, batch, [*names, *kinds])
    with reft.hooks(bridge, batch):
        edited = cached(bridge, batch, names)
    seen = {}
    hooks = [(name, lambda activation, hook, name=name: base[name]) for name in kinds]
    passed = None
    if sender != "edit":
        hooks.append(write(sender, edited, pos=sender_pos))
        point, head = point_of(sender)
        passed = point if head is None else point.replace("attn.hook_z", "hook_attn_out")
    keep = [(name, lambda activation, hook, name=name: seen.update({name: activation.clone()})) for name in names]
    hooks += [hook for hook in keep if sender == "edit" or hook[0] != point_of(sender)[0]]
    outs = [name for name in names if not name.endswith("hook_z") and name != passed]
    hooks += [(name, lambda activation, hook, name=name: base[name]) for name in outs]
    if sender == "edit":
        edits = reft.edits(batch)
        if sender_pos is not None:
            columns = torch.arange(batch.tokens.shape[1]) == sender_pos
            edits = [rl.Edit(edit.hook_name, edit.intervention, edit.mask & columns) for edit in edits]
        with bridge.hooks(fwd_hooks=hooks), rl.attach(bridge, edits):
            logits = bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
        direct = metric(batch.at_last_prompt_token(logits), torch.arange(len(batch))).detach()
    else:
        direct = one_run(bridge, batch, metric, hooks)
    if receiver == "logits":
        return direct
    return one_run(bridge, batch, metric, [write(receiver, seen, pos=receiver_pos)])


SENDERS, RECEIVERS = ["edit", "1.3", "mlp1", "2.1"], ["mlp1", "2.0", "mlp2", "logits"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_every_path_equals_three_whole_runs(architecture) -> None:
    bridge = make_bridge(architecture)
    reft, batch, metric = edit_on(bridge), rl.encode(bridge, PROMPTS), metric_on(bridge)
    result = rl.analysis.paths(bridge, reft, batch, metric, senders=SENDERS, receivers=RECEIVERS, progress=False)
    for row, sender in enumerate(SENDERS):
        for column, receiver in enumerate(RECEIVERS):
            found = result.values[:, row, column]
            if bool(found.isnan().any()):
                order = [(int(point_of(n)[0].split(".")[1]), point_of(n)[1] is None) for n in (sender, receiver)]
                assert order[0] >= order[1]
                continue
            expected = plainly(bridge, reft, batch, metric, sender, receiver)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    moved = (result.values - result.base[:, None, None]).abs().nan_to_num().amax(0)
    assert float(moved[0].min()) > 1e-3, "the edit reaches every receiver"
    assert float(moved[1, 1:].min()) > 1e-3
    if architecture == "gpt_neox":
        assert float(moved[1, 0]) == 0.0, "side by side, an MLP does not read its block's heads"
    # All names, asked for by leaving them out.
    assert rl.analysis.paths(bridge, reft, batch, metric, senders=["edit"], progress=False).columns[-1] == "logits"


@pytest.mark.parametrize(
    ("architecture", "over", "through"),
    [
        ("llama", "receiver positions", "v"),
        pytest.param("gpt2", "sender positions", "qkv", marks=pytest.mark.slow),
        pytest.param("gemma2", "sender positions", "qk", marks=pytest.mark.slow),
        pytest.param("gpt_neox", "receiver positions", "k", marks=pytest.mark.slow),
    ],
)
def test_so_does_every_path_at_one_token(architecture, over, through) -> None:
    bridge = make_bridge(architecture)
    reft, metric = edit_on(bridge), metric_on(bridge)
    batch = rl.encode(bridge, PROMPTS, padding_side="left" if through == "v" else "right")
    senders, receivers = ["edit", "1.3"], ["2.0", "logits"]
    options = {"senders": senders, "receivers": receivers, "over": over, "through": through, "progress": False}
    result = rl.analysis.paths(bridge, reft, batch, metric, **options)
    assert result.rows == tuple(f"{s}->{r}" for s in senders for r in receivers)
    assert torch.equal(result.values.isfinite(), batch.prompt_mask[:, None].expand_as(result.values))
    moved = (result.values - result.base[:, None, None]).abs().nan_to_num()
    assert float(moved[:, ::2].max()) > 1e-3
    for row, way in enumerate(result.rows):
        sender, receiver = way.split("->")
        for pos in range(0, batch.tokens.shape[1], 3):
            found, there = result.values[:, row, pos], batch.prompt_mask[:, pos]
            if over == "receiver positions" and receiver == "logits":
                at_last = batch.last_prompt_index == pos
                whole = plainly(bridge, reft, batch, metric, sender, receiver, through=through)
                expected = torch.where(at_last, whole, result.base)
            else:
                place = {over.replace(" positions", "_pos"): pos}
                expected = plainly(bridge, reft, batch, metric, sender, receiver, through=through, **place)
            torch.testing.assert_close(found[there], expected[there], rtol=0, atol=1e-5)


def test_what_a_receiver_reads_is_the_base_stream_and_what_the_sender_added(gpt2) -> None:
    """In GPT-2 the residual stream is a sum, so step 2 has a closed form, without any run that holds components."""
    reft, batch, metric = edit_on(gpt2), rl.encode(gpt2, PROMPTS), metric_on(gpt2)
    names = ["blocks.1.attn.hook_z", "blocks.2.attn.hook_z", "blocks.2.hook_resid_pre"]
    base = cached(gpt2, batch, names)
    with reft.hooks(gpt2, batch):
        edited = cached(gpt2, batch, names)
    W_O = gpt2.original_model.transformer.h[1].attn.c_proj.weight[8 * 3 : 8 * 4]
    added = (edited[names[0]] - base[names[0]])[:, :, 3] @ W_O
    stream = base["blocks.2.hook_resid_pre"] + added
    seen = {}
    read = [
        ("blocks.2.hook_resid_pre", lambda resid, hook: stream),
        ("blocks.2.attn.hook_z", lambda z, hook: seen.update({"blocks.2.attn.hook_z": z.clone()})),
    ]
    one_run(gpt2, batch, metric, read)
    result = rl.analysis.paths(gpt2, reft, batch, metric, senders=["1.3"], receivers=["2.0", "2.2"], progress=False)
    for column, receiver in enumerate(result.columns):
        expected = one_run(gpt2, batch, metric, [write(receiver, seen)])
        torch.testing.assert_close(result.values[:, 0, column], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("second", ["mlp", "head"])
def test_a_path_of_two_steps_is_found_and_no_decoy(second) -> None:
    model = two_steps(second=second, n_pairs=8)
    turn = rl.Interchange.along(model.true)
    turn.take(lambda variable: -variable)
    reft = rl.Reft([(rl.Site("blocks.0.hook_resid_post", rl.First(1)), turn)])

    def metric(logits, pair):
        return logits[:, 0] - logits[:, 1]

    result = rl.analysis.paths(model.bridge, reft, model.base, metric, progress=False)
    assert float((result.source - result.base).abs().min()) > 0.1
    maker = "mlp2" if second == "mlp" else "2.0"
    planted = {("edit", "1.0"), ("1.0", maker), (maker, "logits")}
    carried = result.restored()
    for row, sender in enumerate(result.rows):
        for column, receiver in enumerate(result.columns):
            if bool(carried[row, column].isfinite()):
                assert float(carried[row, column]) == pytest.approx(float((sender, receiver) in planted), abs=1e-3)
    # The decoys do answer to the edit: only a path tells them from what is used.
    places = ["blocks.1.attn.hook_z", "blocks.1.hook_mlp_out"]
    base = cached(model.bridge, model.base, places)
    with reft.hooks(model.bridge, model.base):
        edited = cached(model.bridge, model.base, places)
    assert float((edited[places[0]] - base[places[0]])[:, -1, 1].abs().amax(-1).min()) > 0.1
    assert float((edited[places[1]] - base[places[1]])[:, 0].abs().amax()) > 0.1
    # The turned edit, which leaves the variable alone but for chance, is no more than a part of it.
    control = result.restored(result.control)
    assert float(control[0].abs().max()) < 0.8
    by_token = rl.analysis.paths(
        model.bridge,
        reft,
        model.base,
        metric,
        senders=["1.0"],
        receivers=[maker],
        over="receiver positions",
        progress=False,
    )
    wanted = torch.zeros_like(by_token.restored())
    wanted[0, -1] = 1.0
    torch.testing.assert_close(by_token.restored(), wanted, rtol=0, atol=1e-3)


def test_what_is_no_path_is_refused(gpt2) -> None:
    reft, batch, metric = edit_on(gpt2), rl.encode(gpt2, PROMPTS), metric_on(gpt2)

    def paths(**options):
        return rl.analysis.paths(gpt2, reft, batch, metric, progress=False, **options)

    with pytest.raises(ValueError, match=r"Unknown sender '4\.0'\. Choose from: edit, 0\.0"):
        paths(senders=["4.0"])
    with pytest.raises(ValueError, match="Unknown receiver 'edit'"):
        paths(receivers=["edit"])
    with pytest.raises(ValueError, match="each named once"):
        paths(senders=["1.0", "1.0"])
    with pytest.raises(ValueError, match="no receiver comes after a sender"):
        paths(senders=["2.0"], receivers=["1.0"])
    with pytest.raises(ValueError, match="over must be one of components"):
        paths(over="heads")
    with pytest.raises(ValueError, match="letters q, k and v"):
        paths(through="qz")
    at_mlp = rl.Reft([(rl.Site("blocks.1.hook_mlp_out", rl.First(1)), rl.LoReFT(32, 2))])
    with pytest.raises(ValueError, match="hook_mlp_out itself"):
        rl.analysis.paths(gpt2, at_mlp, batch, metric)
    with pytest.raises(ValueError, match="without completions"):
        rl.analysis.paths(gpt2, reft, rl.encode(gpt2, PROMPTS, [" Ostra"] * 3), metric)
