"""The graph of an edit: kept graphs against whole runs with plain hooks, and graphs that were built by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from architectures import make_hf
from conftest import PROMPTS, make_bridge, make_edit, make_tokenizer
from made import made_graph
from test_channels import EXACT, difference, flipped
from test_mediation import edit_on, metric_on, one_run

import reftlens as rl
from reftlens.analysis.engine import circuit, sweep
from reftlens.analysis.engine.circuit import Circuit, directions_of
from reftlens.benchmark.handmade import _batch, two_steps
from reftlens.cone.recording import record
from reftlens.data.batches import first_rows
from reftlens.plot.wiring import wiring

SITES = [("blocks.0.hook_resid_post", "f1"), ("blocks.1.attn.hook_q", "l1"), ("blocks.1.hook_resid_post", "l1")]
N_POS = 3


def components():
    """Every head and MLP at every token, in the order of execution: its name, its point, and its place there."""
    for layer in range(3):
        for head in (0, 1, 2, 3, None):
            for pos in range(N_POS):
                name = f"mlp{layer}@{pos}" if head is None else f"{layer}.{head}@{pos}"
                point = f"blocks.{layer}." + ("hook_mlp_out" if head is None else "attn.hook_z")
                yield name, point, (slice(None), pos, *(() if head is None else (head,)))


def seen_in(bridge, batch):
    points = dict.fromkeys(point for _, point, _ in components())
    cache = bridge.run_with_cache(batch.tokens, names_filter=list(points))[1]
    # The cache has canonical names as well, for the same activations.
    return {point: cache[point] for point in points}


def writes_of(bridge, reft, batch):
    """Each direction of the edit at each token: its hook, and what it adds there."""
    operators = rl.analysis.decompose(bridge, reft, batch)
    found = {}
    for site, (edit, h) in enumerate(rl.analysis.edited_activations(bridge, reft, batch)):
        change = edit.change(h).detach()
        pos = int(edit.mask[0].nonzero())
        for k, direction in enumerate(operators[site].write):
            added = torch.zeros(len(batch), N_POS, len(direction))
            added[:, pos] = (change @ direction)[:, None] * direction
            found[f"e{site}.{k}@{pos}"] = edit.hook_name, added
    return found


def whole_run(bridge, batch, metric, outputs, writes, keep=None):
    """One run with all heads and MLPs held; what one point would have put out is kept."""
    seen = {}

    def hold(point):
        def hook_fn(activation, hook):
            seen[point] = activation.clone()
            return outputs[point]

        return point, hook_fn

    adding = [(name, lambda h, hook, added=added: h + added.view_as(h)) for name, added in writes]
    value = one_run(bridge, batch, metric, [*adding, *(hold(point) for point in outputs)])
    return value, seen.get(keep)


def carried(bridge, batch, metric, writes, base, carries):
    """The definition of a graph: one whole run for every head and MLP at every token, and one for the answer."""
    values = {point: outputs.clone() for point, outputs in base.items()}

    def stream(reader):
        outputs = {point: outputs.clone() for point, outputs in base.items()}
        for name, point, place in components():
            if carries(name, reader):
                outputs[point][place] = values[point][place]
        return outputs, [write for name, write in writes.items() if carries(name, reader)]

    for name, point, place in components():
        _, reply = whole_run(bridge, batch, metric, *stream(name), keep=point)
        values[point][place] = reply[place]
    return whole_run(bridge, batch, metric, *stream("answer"))[0]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_a_kept_graph_equals_a_whole_run_for_every_component(architecture) -> None:
    bridge = make_bridge(architecture)
    batch = _batch(torch.randint(3, 320, (3, N_POS), generator=torch.Generator().manual_seed(0)))
    reft, metric = edit_on(bridge, SITES).scaled(5.0), metric_on(bridge)
    result = rl.analysis.graph(bridge, reft, batch, metric, n_nodes=12, n_sizes=4, progress=False)
    one, base, writes = result.edit, seen_in(bridge, batch), writes_of(bridge, reft, batch)
    with reft.hooks(bridge, batch):
        edited = seen_in(bridge, batch)
    start = one_run(bridge, batch, metric, [])
    place = len(one.kept_edges) - 2
    kept = {(one.edges[n].source, one.edges[n].target) for n in one.kept_edges[place]}
    assert len(kept) > 5
    assert any(source.startswith("e") for source, _ in kept)
    alone = carried(bridge, batch, metric, writes, base, lambda s, r: (s, r) in kept) - start
    without = carried(bridge, batch, metric, writes, base, lambda s, r: (s, r) not in kept) - start
    torch.testing.assert_close(one.kept[place], alone, rtol=0, atol=2e-5)
    torch.testing.assert_close(one.lost[place], one.whole - without, rtol=0, atol=2e-5)
    assert float((one.kept[place] - one.whole).abs().max()) > 1e-3
    # Single edges: the reply to one change is put into the base.
    places = {name: (point, there) for name, point, there in components()}
    for edge in (one.edges[0], one.edges[5], one.edges[9]):
        outputs = {point: outputs.clone() for point, outputs in base.items()}
        if edge.source in places:
            point, there = places[edge.source]
            outputs[point][there] = edited[point][there]
        point, there = places.get(edge.target, (None, None))
        added = [writes[edge.source]] if edge.source in writes else []
        value, reply = whole_run(bridge, batch, metric, outputs, added, keep=point)
        if point is not None:
            new = base[point].clone()
            new[there] = reply[there]
            value = one_run(bridge, batch, metric, [(point, lambda activation, hook, new=new: new)])
        assert edge.value == pytest.approx(float((value - start).mean()), abs=1e-5)


def circuit_of(bridge, reft, batch, metric, **options):
    """The engine with every node."""
    names = list(dict.fromkeys(point for _, point, _ in components()))
    base = record(bridge, batch, names)
    with torch.no_grad(), reft.hooks(bridge, batch):
        edited = record(bridge, batch, names)
    writes = directions_of(bridge, reft, batch, **options)
    return Circuit(bridge, base, edited, writes, metric, memory_bytes=1 << 24)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_with_every_edge_the_graph_is_the_edited_run(architecture) -> None:
    bridge = make_bridge(architecture)
    batch = _batch(torch.randint(3, 320, (2, N_POS), generator=torch.Generator().manual_seed(1)))
    reft = edit_on(bridge, SITES).scaled(5.0)
    given = [torch.eye(32)[:1]] * 3
    runs = circuit_of(bridge, reft, batch, difference, given=given)
    assert {write.name for write in runs.writes} >= {"e0.0@0", "e0.rest@0", "e2.rest@2"}
    readers = runs.components()
    nodes = [*runs.writes, *readers]
    full = {reader.name: [node for node in nodes if node.leads_to(reader)] for reader in readers}
    full["answer"] = nodes
    base, edited = (difference(run.logits, None) for run in (runs.base, runs.edited))
    assert float((edited - base).abs().min()) > 1e-3
    torch.testing.assert_close(runs.alone(full, readers), edited, **EXACT)
    torch.testing.assert_close(runs.without(full, readers), base, **EXACT)
    torch.testing.assert_close(runs.alone({}, []), base, **EXACT)
    torch.testing.assert_close(runs.without({}, []), edited, **EXACT)
    # Where the answer alone reads the one site, what is left is the direct effect.
    late = edit_on(bridge, SITES[2:])
    runs = circuit_of(bridge, late, batch, difference)
    direct = rl.analysis.direct_effect(bridge, late, batch, difference)
    torch.testing.assert_close(runs.alone({"answer": runs.writes}, []) - base, direct, **EXACT)


@pytest.mark.parametrize(
    "sites",
    [
        # Cones that begin inside the prompt, and several sites at one point.
        [("blocks.0.hook_resid_pre", "l2")],
        [("blocks.1.hook_resid_mid", "l1"), ("blocks.1.hook_resid_mid", "f2"), ("blocks.1.hook_attn_out", "l1")],
        [("blocks.1.mlp.hook_post", "l2"), ("blocks.1.attn.hook_v", "l2")],
    ],
)
def test_the_edit_may_act_at_any_point_but_the_nodes_themselves(gpt2, sites) -> None:
    batch = _batch(torch.randint(3, 320, (2, N_POS), generator=torch.Generator().manual_seed(1)))
    widths = {name: 128 if "mlp" in name else 32 for name, _ in sites}
    edits = [make_edit(rl.LoReFT, widths[name], 2, seed=k) for k, (name, _) in enumerate(sites)]
    reft = rl.Reft([(rl.Site(name, rl.parse(p)), edit) for (name, p), edit in zip(sites, edits, strict=True)])
    runs = circuit_of(gpt2, reft.scaled(5.0), batch, difference)
    readers = runs.components()
    nodes = [*runs.writes, *readers]
    full = {reader.name: [node for node in nodes if node.leads_to(reader)] for reader in readers} | {"answer": nodes}
    base, edited = (difference(run.logits, None) for run in (runs.base, runs.edited))
    assert float((edited - base).abs().min()) > 1e-3
    torch.testing.assert_close(runs.alone(full, readers), edited, **EXACT)
    torch.testing.assert_close(runs.without(full, readers), base, **EXACT)


def test_a_control_without_an_effect_is_a_graph_without_edges(gpt2) -> None:
    batch = _batch(torch.randint(3, 320, (2, N_POS), generator=torch.Generator().manual_seed(1)))
    reft = edit_on(gpt2, SITES[2:]).scaled(40.0)
    with torch.no_grad(), reft.hooks(gpt2, batch):
        turned_to = gpt2(batch.tokens)[:, -1].argmax(-1)

    def says_it(logits, pair):
        return (logits.argmax(-1) == turned_to[pair]).float()

    result = rl.analysis.graph(gpt2, reft, batch, says_it, n_nodes=4, n_sizes=2, seed=2, progress=False)
    assert float(result.edit.whole.min()) == 1
    assert not result.control.whole.any()
    assert (len(result.control.nodes), result.control.edges, result.control.pruned()) == (1, (), ())
    assert "effect 0, 0 edges" in result.headline()
    result.plot()

    def together(logits, pair):
        """Changes only if the whole edit acts."""
        return (logits - whole[pair]).abs().amax(1).lt(1e-4).float()

    with torch.no_grad(), reft.hooks(gpt2, batch):
        whole = gpt2(batch.tokens)[:, -1]
    with pytest.raises(ValueError, match="none of its directions, heads and MLPs does alone"):
        rl.analysis.graph(gpt2, reft, batch, together, progress=False)


def test_effects_of_opposite_sign_do_not_cancel(gpt2) -> None:
    batch = _batch(torch.randint(3, 320, (1, N_POS), generator=torch.Generator().manual_seed(1)).expand(2, -1))
    reft, sizes = edit_on(gpt2, SITES[:1]), {"n_nodes": 6, "n_sizes": 3, "progress": False}
    plain = rl.analysis.graph(gpt2, reft, batch, difference, **sizes).edit
    signed = rl.analysis.graph(
        gpt2, reft, batch, lambda logits, pair: difference(logits, pair) * (1 - 2 * pair), **sizes
    )
    assert abs(float(signed.edit.whole.mean())) < 1e-6 < float(signed.edit.whole.abs().min())
    assert [node.name for node in signed.edit.nodes] == [node.name for node in plain.nodes]
    assert [(e.source, e.target) for e in signed.edit.pruned()] == [(e.source, e.target) for e in plain.pruned()]
    assert len(plain.pruned()) > 1
    # The direction is a node, though heads have larger effects alone.
    assert sum(node.kind == "edit" for node in plain.nodes) == 1
    assert max(abs(node.effect) for node in plain.nodes if node.kind == "head") > abs(plain.nodes[0].effect)
    assert not any(edge.value for edge in signed.edit.edges)
    signed.plot()
    assert "<svg" in wiring(signed, signed.edit)
    # Only the last token's stream is read by the answer.
    assert {edge.source[-2:] for edge in plain.edges if edge.target == "answer"} == {f"@{N_POS - 1}"}


def test_a_title_does_not_claim_a_share_that_no_graph_has() -> None:
    result = made_graph()
    assert result.edit.reaches(0.97)
    assert not replace(result.edit, kept=0.5 * result.edit.kept).reaches(0.9)
    # Too much in some examples does not make up for too little in others.
    sides = torch.tensor([1.0, -1.0] * 4)
    assert not replace(result.edit, kept=result.edit.kept + 2 * sides).reaches(0.9)
    for one, title in ((result, "smallest graph with 90%"), (replace(result, edit=result.control), "no graph has 90%")):
        assert one.plot().axes[0].get_title(loc="left").startswith(title)


def test_padding_changes_no_graph(gpt2) -> None:
    prompts = [PROMPTS[1], PROMPTS[1]]
    alone, padded = rl.encode(gpt2, prompts), first_rows(rl.encode(gpt2, [*prompts, PROMPTS[0]]), 2)
    assert padded.tokens.shape[1] > alone.tokens.shape[1]
    one, other = (
        rl.analysis.graph(gpt2, edit_on(gpt2, SITES[:1]), batch, difference, n_nodes=6, n_sizes=1, progress=False).edit
        for batch in (alone, padded)
    )
    assert [node.name for node in one.nodes] == [node.name for node in other.nodes]
    assert one.nodes[-1].pos == other.nodes[-1].pos
    torch.testing.assert_close(one.kept, other.kept, **EXACT)
    torch.testing.assert_close(one.lost, other.lost, **EXACT)


LONG = 3e4


def linear_model():
    """A GPT-2 whose blocks are linear: equal attention, MLPs of gelu(a) - gelu(-a), and a stream so long along two coordinates,
    which no block reads or writes, that LayerNorm divides by the same number always."""
    model, generator = make_hf("gpt2"), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for block in model.transformer.h:
            for part in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
                part.weight[:] = 0.5 * torch.randn(part.weight.shape, generator=generator) / part.weight.shape[0] ** 0.5
                part.bias[:] = 0.0
            block.attn.c_attn.weight[:, :64] = 0.0
            half = block.mlp.c_fc.weight.shape[1] // 2
            block.mlp.c_fc.weight[:, half:] = -block.mlp.c_fc.weight[:, :half]
            block.mlp.c_proj.weight[half:] = -block.mlp.c_proj.weight[:half]
            for part in (block.attn.c_attn, block.mlp.c_fc):
                # What LayerNorm divides by, so that blocks answer as strongly as usual.
                part.weight *= LONG * (2 / 32) ** 0.5
                part.weight[:2] = 0.0
            for part in (block.attn.c_proj, block.mlp.c_proj):
                part.weight[:, :2] = 0.0
        # Along a direction without a mean, which LayerNorm keeps.
        model.transformer.wpe.weight[:, :2] += LONG * torch.tensor([1.0, -1.0])
    # In float64, where so long a stream rounds nothing away.
    return rl.load_bridge(hf_model=model.double(), tokenizer=make_tokenizer())


@pytest.mark.parametrize(
    ("second", "edges"),
    [
        ("mlp", {("e0.0@0", "1.0@4"), ("1.0@4", "mlp2@4"), ("mlp2@4", "answer")}),
        (
            "head",
            {
                *(("e0.0@0", f"1.0@{pos}") for pos in range(5)),
                *((f"1.0@{pos}", "2.0@4") for pos in range(5)),
                ("2.0@4", "answer"),
            },
        ),
    ],
)
def test_a_graph_built_by_hand_is_recovered_edge_by_edge(second, edges) -> None:
    """Decoys: head 1.1 copies the variable where nothing reads it, and an MLP writes the answer where nothing reads it."""
    model = two_steps(second=second, n_pairs=4)
    result = rl.analysis.graph(model.bridge, flipped(model, "f1"), model.base, difference, progress=False)
    one = result.edit
    assert float(one.whole.abs().min()) > 0.1
    found = {(edge.source, edge.target): edge.value for edge in one.edges if abs(edge.value) > 1e-4}
    assert set(found) == edges
    assert {(edge.source, edge.target) for edge in one.pruned(0.999)} == edges
    full = next(place for place, kept in enumerate(one.kept_edges) if len(kept) >= len(edges))
    torch.testing.assert_close(one.kept[full], one.whole, **EXACT)
    torch.testing.assert_close(one.lost[full], one.whole, **EXACT)
    assert one.faithfulness()[full] == pytest.approx(1, abs=1e-5)
    if second == "mlp":
        # One chain: each edge carries all of it, and half a chain nothing.
        assert list(found.values()) == pytest.approx([float(one.whole.mean())] * 3, abs=1e-4)
    assert abs(float(result.control.whole.mean())) < 0.9 * abs(float(one.whole.mean()))


def test_where_blocks_are_linear_edges_into_the_answer_sum_to_the_effect() -> None:
    bridge = linear_model()
    batch = _batch(torch.randint(3, 320, (2, 2), generator=torch.Generator().manual_seed(2)))
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(5)) * (torch.arange(32) > 1)
    sites = [rl.Site(name, rl.parse(where)) for name, where in (SITES[0], SITES[2])]
    reft = rl.Reft([(site, rl.SteeringVector.of(vector)) for site, vector in zip(sites, vectors, strict=True)])

    plain = difference(bridge(batch.tokens)[:, -1], None)

    def metric(logits, pair):
        # Against the base before it is rounded, because changes behind so long a stream are small.
        return LONG * (difference(logits, pair) - plain[pair])

    one = rl.analysis.graph(bridge, reft, batch, metric, n_nodes=1000, n_sizes=1, progress=False).edit
    into = [edge.value for edge in one.edges if edge.target == "answer"]
    assert len(into) > 10
    whole = float(one.whole.mean())
    assert abs(whole) > 1e-2
    assert sum(into) == pytest.approx(whole, rel=1e-5)
    answering = [edge.value for edge in one.edges if edge.target == "answer" and edge.source[0] != "e"]
    assert sum(map(abs, answering)) > 0.1 * abs(whole), "heads and MLPs have a part in it"


def test_what_the_viewer_of_circuit_tracer_needs_is_in_the_file(tmp_path) -> None:
    """Fields of its `graph_models.py`, and what its scripts read from them (github.com/safety-research/circuit-tracer, d797c82)."""
    model = two_steps(n_pairs=4)
    result = rl.analysis.graph(model.bridge, flipped(model, "f1"), model.base, difference, n_sizes=3, progress=False)
    path = result.save_circuit_tracer(tmp_path / "graphs", slug="turned")
    graph = json.loads(path.read_text())
    assert path.name == "turned.json"
    assert set(graph) == {"metadata", "qParams", "nodes", "links"}
    listed = json.loads((tmp_path / "graphs" / "graph-metadata.json").read_text())["graphs"]
    assert listed == [graph["metadata"]]
    for slug, expected in (("other", ["turned", "other"]), ("turned", ["other", "turned"])):
        result.save_circuit_tracer(tmp_path / "graphs", slug=slug)
        listed = json.loads((tmp_path / "graphs" / "graph-metadata.json").read_text())["graphs"]
        assert [one["slug"] for one in listed] == expected
    for slug in ("", "a/b", "graph-metadata"):
        with pytest.raises(ValueError, match="slug must be a file name"):
            result.save_circuit_tracer(tmp_path / "graphs", slug=slug)
    texts = {"slug", "scan", "prompt"}
    assert all(isinstance(graph["metadata"][name], str) for name in texts)
    assert len(graph["metadata"]["prompt_tokens"]) == model.base.tokens.shape[1]
    assert set(graph["qParams"]) == {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"}
    kinds = {"node_id": str, "feature": int, "layer": str, "ctx_idx": int, "feature_type": str, "jsNodeId": str}
    kinds |= {"token_prob": float, "is_target_logit": bool, "run_idx": int, "reverse_ctx_idx": int, "clerp": str}
    ids = [node["node_id"] for node in graph["nodes"]]
    assert len(set(ids)) == len(ids) == len(result.edit.nodes)
    for node in graph["nodes"]:
        assert all(type(node[name]) is kind for name, kind in kinds.items())
        assert 0 <= node["ctx_idx"] < len(graph["metadata"]["prompt_tokens"])
        assert node["layer"] == "E" or int(node["layer"]) >= 0
    (answer,) = [node for node in graph["nodes"] if node["feature_type"] == "logit"]
    assert float(answer["clerp"].split("(p=")[1].split(")")[0]) == 1.0
    assert answer["clerp"].split('"')[1] == "answer"
    assert {link["source"] for link in graph["links"]} | {link["target"] for link in graph["links"]} <= set(ids)
    assert len(graph["links"]) == len(result.edit.edges)
    assert set(graph["qParams"]["pinnedIds"]) <= set(ids)
    assert len(graph["qParams"]["pinnedIds"]) == 4


def test_a_graph_that_cannot_be_drawn_is_refused_and_its_cost_is_said(gpt2) -> None:
    reft, metric = edit_on(gpt2, SITES[:1]), metric_on(gpt2)
    batch = _batch(torch.randint(3, 320, (3, N_POS)))
    with pytest.raises(ValueError, match="must have the same number of them"):
        rl.analysis.graph(gpt2, reft, PROMPTS, metric)
    with pytest.raises(ValueError, match=r"one matrix \[k, width\] for each of 1 sites, of widths \[32\]"):
        rl.analysis.graph(gpt2, reft, batch, metric, directions=[torch.eye(31)])
    with pytest.raises(ValueError, match="does not change the metric"):
        rl.analysis.graph(gpt2, reft.scaled(0.0), batch, metric, progress=False)
    with pytest.raises(ValueError, match="n_nodes"):
        rl.analysis.graph(gpt2, reft, batch, metric, n_nodes=0)


@pytest.mark.parametrize("analysis", [rl.analysis.graph, rl.analysis.paths, rl.analysis.direct_effect])
def test_a_hybrid_model_whose_recurrent_part_is_no_component_is_refused(analysis) -> None:
    bridge = make_bridge("falcon_h1")
    batch = _batch(torch.randint(3, 320, (2, N_POS)))
    with pytest.raises(ValueError, match="carries changes between tokens by other parts than its heads"):
        analysis(bridge, edit_on(bridge, SITES[:1]), batch, difference)


def test_the_cost_that_is_said_beforehand_is_not_exceeded(gpt2, monkeypatch) -> None:
    reft, batch = edit_on(gpt2, SITES), _batch(torch.randint(3, 320, (2, N_POS)))
    rows = []

    def counted(run):
        def call(bridge, held, *args, **kwargs):
            rows.append(len(held.batch))
            return run(bridge, held, *args, **kwargs)

        return call

    for module, name in ((circuit, "run_cone"), (circuit, "run_blocks"), (sweep, "run_cone")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    sizes = {"n_nodes": 8, "n_sizes": 2}
    rl.analysis.graph(gpt2, reft, batch, difference, **sizes, progress=False)
    said = rl.analysis.graph_cost(gpt2, reft, batch, **sizes)
    assert said / 2 < sum(rows) / len(batch) <= said
