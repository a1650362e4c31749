"""Patching sweeps against one whole run for each cell, written plainly, and against TransformerLens's own."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
import transformer_lens.patching as tl
from conftest import make_bridge

import reftlens as rl
from reftlens.analysis.engine import sweep as engine
from reftlens.analysis.engine.grid import grid
from reftlens.bridge import proving
from reftlens.cone.recording import joining, record

CLEAN = ["The tower stands in the city of", "The weaver speaks", "The old tower stands by the river in the city of"]
CORRUPTED = ["The river stands in the old of", "The tower lives", "The old weaver lives by the tower in the river of"]
OTHER = ["The weaver lives by the river and", "The city speaks", "The old river lives by the weaver in the weaver of"]
ANSWERS, FOILS = [" Ostra", " Tharic", " river"], [" weaver", " city", " tower"]
SWEEPS = [
    ("resid_pre", "positions"),
    ("attn_out", "positions"),
    ("mlp_out", "positions"),
    ("z", "positions"),
    ("z", "heads"),
    ("z", "heads and positions"),
]


def batches(bridge, side="right", rows=slice(None)):
    return [rl.encode(bridge, prompts[rows], padding_side=side) for prompts in (CLEAN, CORRUPTED, OTHER)]


def plainly(bridge, into, out_of, metric, point, over, *, window=1):
    """Every cell by a whole run: `[pair, layer, head or position]`, or `[pair, layer * head, position]`."""
    names = list(grid(bridge, point, over, n_pos=into.tokens.shape[1]).names)
    mask = {"attention_mask": into.attention_mask}
    _, cache = bridge.run_with_cache(out_of.tokens, names_filter=names, **mask)
    pairs, n_pos = torch.arange(len(into)), into.tokens.shape[1]

    def run(layer, pos, head):
        def write(activation, hook, name):
            new = activation.clone()
            place = (slice(None), slice(None) if pos is None else pos, *(() if head is None else (head,)))
            new[place] = cache[name][place]
            return new

        group = names[max(0, layer - window // 2) : layer - window // 2 + window]
        hooks = [(name, partial(write, name=name)) for name in group]
        logits = bridge.run_with_hooks(into.tokens, fwd_hooks=hooks, **mask)
        values = metric(into.at_last_prompt_token(logits), pairs)
        return values if pos is None else torch.where(into.prompt_mask[:, pos], values, torch.nan)

    layers, heads = range(len(names)), range(bridge.cfg.n_heads)
    if over == "heads":
        rows = [[run(layer, None, head) for head in heads] for layer in layers]
    elif over == "positions":
        rows = [[run(layer, pos, None) for pos in range(n_pos)] for layer in layers]
    else:
        rows = [[run(layer, pos, head) for pos in range(n_pos)] for layer in layers for head in heads]
    return torch.stack([torch.stack(row) for row in rows]).permute(2, 0, 1).detach()


FORMS = ("gpt2", "llama", "gpt_neox", "gemma2")
QUICK = [
    *((form, "resid_pre", "positions", side, "denoise") for form in FORMS for side in ("right", "left")),
    *((form, "mlp_out", "positions", "right", "denoise") for form in FORMS),
    *((form, "attn_out", "positions", "right", "noise") for form in FORMS),
    *((form, "z", "heads", "right", "noise") for form in FORMS),
    ("llama", "z", "heads and positions", "right", "denoise"),
]
ALL = [
    (form, *swept, side, direction)
    for form in FORMS
    for swept in SWEEPS
    for side in ("right", "left")
    for direction in ("denoise", "noise")
]
RUNS = [*QUICK, *(pytest.param(*run, marks=pytest.mark.slow) for run in ALL if run not in QUICK)]


@pytest.mark.sampled(7)
@pytest.mark.parametrize(("architecture", "point", "over", "side", "direction"), RUNS)
def test_a_sweep_equals_a_whole_run_for_each_cell(architecture, point, over, side, direction) -> None:
    bridge = make_bridge(architecture)
    clean, corrupted, other = batches(bridge, side)
    metric = rl.analysis.logit_difference_of(bridge, CLEAN, ANSWERS, FOILS)
    options = {"point": point, "over": over, "direction": direction, "progress": False}
    result = rl.analysis.patch(bridge, clean, corrupted, metric, unrelated=other, **options)
    into, out_of = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    plain = plainly(bridge, into, out_of, metric, point, over)
    torch.testing.assert_close(result.values, plain, rtol=0, atol=1e-5, equal_nan=True)
    control = plainly(bridge, into, other, metric, point, over)
    torch.testing.assert_close(result.control, control, rtol=0, atol=1e-5, equal_nan=True)
    moved = (result.values - result.base[:, None, None]).abs()
    assert float(moved[moved.isfinite()].max()) > 0.01, "a patch without effect proves nothing"
    if point == "resid_pre":
        last = result.values[:, :, -1] if side == "left" else result.values[torch.arange(3), :, into.last_prompt_index]
        assert float((last[:, -1] - result.source).abs().max()) > 1e-3, "the last block still reads other positions"


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("tokens", "memory_bytes"), [(1, 1 << 30), (40, 1 << 30), (10_000, 1), (None, 1 << 30)])
def test_tiles_of_any_size_give_the_same_map(gpt2, monkeypatch, tokens, memory_bytes) -> None:
    clean, corrupted, _ = batches(gpt2)
    metric = rl.analysis.probability_of(gpt2, CLEAN, ANSWERS)
    options = {"point": "attn_out", "window": 2, "progress": False}
    monkeypatch.setattr(engine, "TOKENS", tokens)
    result = rl.analysis.patch(gpt2, clean, corrupted, metric, memory_bytes=memory_bytes, **options)
    plain = plainly(gpt2, corrupted, clean, metric, "attn_out", "positions", window=2)
    torch.testing.assert_close(result.values, plain, rtol=0, atol=1e-5, equal_nan=True)


TRANSFORMER_LENS = {
    ("resid_pre", "positions"): tl.get_act_patch_resid_pre,
    ("attn_out", "positions"): tl.get_act_patch_attn_out,
    ("mlp_out", "positions"): tl.get_act_patch_mlp_out,
    ("z", "heads"): tl.get_act_patch_attn_head_out_all_pos,
    ("z", "heads and positions"): tl.get_act_patch_attn_head_out_by_pos,
}


@pytest.mark.sampled(4)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("point", "over"), TRANSFORMER_LENS)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_equals_transformer_lens_patching(architecture, point, over) -> None:
    """TransformerLens passes no attention mask, so its pairs have one length."""
    bridge = make_bridge(architecture)
    clean, corrupted = (rl.encode(bridge, [texts[0], texts[0]]) for texts in (CLEAN, CORRUPTED))
    corrupted.tokens[1, 1] = 7
    metric = rl.analysis.logit_difference_of(bridge, CLEAN[:2], ANSWERS[:2], FOILS[:2])
    ours = rl.analysis.patch(bridge, clean, corrupted, metric, point=point, over=over, progress=False)
    _, cache = bridge.run_with_cache(clean.tokens)
    pairs = torch.arange(2)
    theirs = TRANSFORMER_LENS[point, over](
        bridge, corrupted.tokens, cache, lambda logits: metric(logits[:, -1], pairs), reduce="none", baseline=True
    )
    mine = ours.to_patching_result()
    assert mine.axis_names == [{"head_index": "head"}.get(name, name) for name in theirs.axis_names]
    torch.testing.assert_close(mine.values, theirs.values, rtol=0, atol=1e-5)
    torch.testing.assert_close(mine.baseline, theirs.baseline, rtol=0, atol=1e-5)
    torch.testing.assert_close(mine.mean(), theirs.mean(), rtol=0, atol=1e-5)
    assert mine.to_dataframe().drop(columns="value").equals(theirs.to_dataframe().drop(columns="value"))


def test_metrics_are_their_formulas(gpt2) -> None:
    logits = torch.randn(3, 320, generator=torch.Generator().manual_seed(0))
    pair = torch.tensor([2, 0, 2])
    answers, foils = (
        [gpt2.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in texts] for texts in (ANSWERS, FOILS)
    )
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    reference = torch.randn(3, 320, generator=torch.Generator().manual_seed(1))
    q = reference.exp() / reference.exp().sum(-1, keepdim=True)
    analysis = rl.analysis
    for row, k in enumerate(pair.tolist()):
        expected = [
            logits[row, answers[k]] - logits[row, foils[k]],
            p[row, answers[k]],
            -p[row, answers[k]].log(),
            (q[k] * (q[k] / p[row]).log()).sum(),
        ]
        metrics = [
            analysis.logit_difference_of(gpt2, CLEAN, ANSWERS, FOILS),
            analysis.probability_of(gpt2, CLEAN, ANSWERS),
            analysis.loss_of(gpt2, CLEAN, ANSWERS),
            analysis.kl_from(reference),
        ]
        torch.testing.assert_close(
            torch.stack([m(logits, pair)[row] for m in metrics]), torch.stack(expected), rtol=1e-4, atol=1e-5
        )
    with pytest.raises(ValueError, match="the answer and the foil of pair 1 begin with the same token"):
        analysis.logit_difference_of(gpt2, CLEAN[:2], ANSWERS[:2], [FOILS[0], ANSWERS[1]])


def test_statistics_are_over_the_pairs_that_have_the_position(gpt2) -> None:
    clean, corrupted, other = batches(gpt2)
    metric = rl.analysis.loss_of(gpt2, CLEAN, ANSWERS)
    result = rl.analysis.patch(gpt2, clean, corrupted, metric, unrelated=other, progress=False)
    mean, stderr, (low, high) = result.mean(), result.stderr(), result.interval()
    lengths = clean.prompt_mask.sum(1)
    for pos in range(clean.tokens.shape[1]):
        there = result.values[lengths > pos][:, :, pos]
        torch.testing.assert_close(mean[:, pos], there.mean(0))
        gap = (result.source - result.base)[lengths > pos].mean()
        expected = (there.mean(0) - result.base[lengths > pos].mean()) / gap
        torch.testing.assert_close(result.restored()[:, pos], expected, rtol=1e-4, atol=1e-5)
        if len(there) > 1:
            torch.testing.assert_close(stderr[:, pos], there.std(0) / len(there) ** 0.5)
            assert bool(((low <= mean) & (mean <= high))[:, pos].all())
        else:
            assert bool(torch.stack([stderr, low, high])[..., pos].isnan().all())
    table = result.to_dataframe()
    assert len(table) == result.mean().numel()
    assert table["control restored"].notna().all()
    drawn = result.to_token_map()
    assert result.columns[-1] == "(11)", "the first prompt has no token there"
    assert drawn.control_name == "the same activations of an unrelated source"
    assert drawn.n_prompts == 3
    torch.testing.assert_close(drawn.values, result.restored())
    assert rl.plot.effect_map(result.to_token_map(starred=(False, True))) is not None
    with pytest.raises(ValueError, match="at most 12 stars"):
        result.to_token_map(starred=(True,) * 13)


def test_what_cannot_change_is_not_run(gpt2, monkeypatch) -> None:
    """Positions before the first differing token hold what they held."""
    clean = rl.encode(gpt2, CLEAN[:1])
    corrupted = rl.encode(gpt2, CLEAN[:1])
    corrupted.tokens[0, 4] = 9
    ran = []
    run = engine._run
    monkeypatch.setattr(engine, "_run", lambda *args: ran.extend(cell.pos for cell in args[3]) or run(*args))
    metric = rl.analysis.probability_of(gpt2, CLEAN[:1], ANSWERS[:1])
    result = rl.analysis.patch(gpt2, clean, corrupted, metric, progress=False)
    assert min(ran) == 4
    assert ran.count(5) == 2, "another token's state differs behind the first block"
    assert torch.equal(result.values[0, :, :4], result.base.expand(3, 4))


def test_an_interrupted_sweep_goes_on(gpt2, tmp_path, monkeypatch) -> None:
    clean, corrupted, other = batches(gpt2)
    metric = rl.analysis.probability_of(gpt2, CLEAN, ANSWERS)
    options = {"save_to": tmp_path / "cells", "progress": False, "unrelated": other}
    whole = rl.analysis.patch(gpt2, clean, corrupted, metric, unrelated=other, progress=False)
    run, ran = engine._run, []

    def breaking(*args):
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append(len(args[3]))
        return run(*args)

    monkeypatch.setattr(engine, "TOKENS", 60)
    monkeypatch.setattr(engine, "_run", breaking)
    with pytest.raises(KeyboardInterrupt):
        rl.analysis.patch(gpt2, clean, corrupted, metric, **options)
    assert {file.name for file in tmp_path.iterdir()} == {"cells"}
    before, again = sum(ran), []
    monkeypatch.setattr(engine, "_run", lambda *args: again.append(len(args[3])) or run(*args))
    result = rl.analysis.patch(gpt2, clean, corrupted, metric, **options)
    torch.testing.assert_close(result.values, whole.values, rtol=0, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(result.control, whole.control, rtol=0, atol=1e-6, equal_nan=True)
    once = sum(again)
    again.clear()
    finished = rl.analysis.patch(gpt2, clean, corrupted, metric, **options)
    assert not again, "nothing is left to run"
    assert torch.equal(finished.values.nan_to_num(), result.values.nan_to_num())
    (tmp_path / "cells").unlink()
    (tmp_path / "cells.control").unlink()
    rl.analysis.patch(gpt2, clean, corrupted, metric, **options)
    assert sum(again) == once + before
    for other_sweep in (
        {"metric": rl.analysis.loss_of(gpt2, CLEAN, ANSWERS)},
        {"bridge": make_bridge("gpt2", seed=1)},
        {"clean": replace(clean, tokens=clean.tokens + clean.prompt_mask)},
    ):
        given = {"bridge": gpt2, "clean": clean, "corrupted": corrupted, "metric": metric} | other_sweep
        with pytest.raises(ValueError, match="cells of another sweep"):
            rl.analysis.patch(*given.values(), **options)
    (tmp_path / "cells").write_text("nonsense")
    with pytest.raises(ValueError, match="cannot be read"):
        rl.analysis.patch(gpt2, clean, corrupted, metric, **options)


def test_the_model_is_left_as_it_was(gpt2) -> None:
    clean, corrupted, _ = batches(gpt2)
    before = gpt2(clean.tokens)

    def failing(logits, pair):
        raise RuntimeError("no metric")

    with pytest.raises(RuntimeError, match="no metric"):
        rl.analysis.patch(gpt2, clean, corrupted, failing, progress=False)
    rl.analysis.patch(gpt2, clean, corrupted, rl.analysis.probability_of(gpt2, CLEAN, ANSWERS), progress=False)
    assert torch.equal(gpt2(clean.tokens), before)
    assert not any(point.fwd_hooks for point in gpt2.hook_dict.values())


def test_patching_refuses_what_it_cannot_do(gpt2) -> None:
    clean, corrupted, _ = batches(gpt2)
    metric = rl.analysis.probability_of(gpt2, CLEAN, ANSWERS)
    patch = partial(rl.analysis.patch, gpt2, clean, corrupted, metric, progress=False)
    with pytest.raises(ValueError, match="the same length in tokens"):
        rl.analysis.patch(gpt2, clean, rl.encode(gpt2, CORRUPTED[::-1]), metric)
    with pytest.raises(ValueError, match="not split into heads"):
        patch(point="mlp_out", over="heads")
    with pytest.raises(ValueError, match="point must be one of resid_pre"):
        patch(point="resid_pots")
    with pytest.raises(ValueError, match="window must be at least 1"):
        patch(window=0)
    completed = [rl.encode(gpt2, prompts, ANSWERS) for prompts in (CLEAN, CORRUPTED)]
    with pytest.raises(ValueError, match="without completions"):
        rl.analysis.patch(gpt2, *completed, metric)
    bert = make_bridge("bert")
    with pytest.raises(ValueError, match=r"must contain the mask token .*row 0 contains it 0 times"):
        rl.analysis.patch(bert, *batches(bert)[:2], metric)


@pytest.mark.parametrize("architecture", ["gpt2", "phi", "gemma3_text"])
def test_a_recording_is_what_hold_keeps(architecture) -> None:
    bridge = make_bridge(architecture)
    clean, *_ = batches(bridge, "left")
    recording = record(bridge, clean)
    edits = rl.Reft([(rl.Site("blocks.1.hook_resid_post", "l2"), rl.LoReFT(32, 2))]).edits(clean)
    held = rl.hold(bridge, clean, edits)
    ours = recording.cone(held.boundary, held.start)
    torch.testing.assert_close(ours.resid, held.resid)
    torch.testing.assert_close(ours.past, held.past)
    torch.testing.assert_close(rl.run_cone(bridge, ours, edits), rl.run_cone(bridge, held, edits))
    rows = torch.tensor([2, 0, 2])
    repeated = recording.cone(1, held.start, rows)
    torch.testing.assert_close(repeated.resid, held.resid[rows])
    assert torch.equal(repeated.batch.tokens, clean.tokens[rows])
    with pytest.raises(ValueError, match=r"boundary must be in \[-1, 2\]"):
        recording.cone(3, 0)


def test_rows_are_taken_where_the_layers_lie(gpt2) -> None:
    """A base may be spread over devices. "meta" stands for one where its tokens or logits are, and no layer is."""
    clean, corrupted, _ = batches(gpt2)
    base, source = (record(gpt2, batch, ["blocks.1.hook_resid_pre"]) for batch in (corrupted, clean))
    rows, layers = torch.tensor([0, 2, 1]), torch.tensor([1, 1, 2])
    elsewhere = replace(base, batch=base.batch.to("meta"))
    here, there = base.cone(1, 2, rows), elsewhere.cone(1, 2, rows)
    with joining(gpt2, base, 2, rows, layers) as held:
        pairs = [(here, there)]
    with joining(gpt2, elsewhere, 2, rows, layers) as other:
        pairs += [(held, other)]
    for one, two in pairs:
        assert torch.equal(one.resid, two.resid)
        torch.testing.assert_close(one.past, two.past, rtol=0, atol=0)
    cells = grid(gpt2, "resid_pre", "positions", n_pos=base.batch.tokens.shape[1]).cells
    cells = [cell for cell in cells if cell.layer == 1 and cell.pos in (3, 4, 5)]
    found = [
        engine._run(gpt2, run, source, cells, rows, torch.tensor([3, 4, 5]), ())
        for run in (base, replace(base, logits=base.logits.to("meta")))
    ]
    assert torch.equal(*found)
    assert not torch.equal(found[0], base.logits[rows])


def test_a_second_map_proves_nothing_again(gpt2) -> None:
    """A proof inside a run, whose blocks are replaced for the moment, would be one more for each run."""
    clean, corrupted, _ = batches(gpt2)
    metric = rl.analysis.probability_of(gpt2, CLEAN, ANSWERS)
    rl.analysis.patch(gpt2, clean, corrupted, metric, progress=False)
    known = set(proving._KNOWN)
    rl.analysis.patch(gpt2, clean, corrupted, metric, progress=False)
    assert set(proving._KNOWN) == known
