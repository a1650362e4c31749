"""What is the graph of an edit: which of its directions, through which heads and MLPs at which tokens, reach the answer?

Nodes are directions that the edit writes, heads and MLPs, each at one token, and the answer. An
edge from a sender s to a reader r is the path of `paths`, at single tokens: r reads the base's
stream with only what s changes in the edited run, its reply is put into the base run, and
everything behind it is recomputed. The edge's value is the change of the metric. Edges into the
answer are direct effects. So edges into the answer sum to the effect if what follows the blocks is
linear.

A graph is pruned by how faithful it is. Keep some edges: each reader finds the base's stream with
what its kept senders put out in reply to *their* kept senders; all other edges are held to the
base. The effect of this run is what the kept graph has alone. The effect that the edited run loses
when exactly these edges are held to the base is what is lost without it. Both are computed for
graphs of the largest edges, as long as these lie on a way from the edit to the answer, at growing
sizes. With all edges of all nodes, the graph is the edited run.

Not evidence that the graph is the only one: other edges may do the same where these are held, which
shows as a small loss. Edge values do not sum, as those of `paths`. Nodes that do little alone are
not looked at, and what several of them do together is then missing from the kept graph. The control
is the graph of the edit turned to random directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.controls.turned import turned
from reftlens.analysis.engine.circuit import ANSWER, Circuit, Node, Stream, directions_of
from reftlens.analysis.engine.grid import Cell, grid
from reftlens.analysis.engine.sweep import sweep
from reftlens.analysis.mediate import edited_run, require_elsewhere
from reftlens.analysis.metrics import Metric
from reftlens.analysis.patch import metric_of, require_pairs, token_labels
from reftlens.bridge import is_main_process, require_heads_alone_mix
from reftlens.cone.hold import boundary_of
from reftlens.cone.recording import Recording, record
from reftlens.data import Batch, Given, as_batch
from reftlens.edit.reft import Reft
from reftlens.numbers import require_whole_number
from reftlens.results import EditGraph
from reftlens.results.graph import GraphEdge, GraphNode, OneGraph

_SENDERS = 16
"""Senders whose replies are in memory at a time, if they fit."""
_NO_EFFECT = "the edit does not change the metric on these prompts, so it has no graph"
_NONE_ALONE = (
    "the edit changes the metric on these prompts, but none of its directions, heads and MLPs does alone, so it has no graph: "
    "take a metric that moves by degrees, such as logit_difference_of"
)


def graph(
    bridge: TransformerBridge,
    reft: Reft,
    prompts: Given,
    metric: Metric,
    *,
    n_nodes: int = 24,
    n_sizes: int = 10,
    directions: Sequence[Float[Tensor, "k width"]] | None = None,
    seed: int = 0,
    memory_bytes: int = 1 << 30,
    progress: bool = True,
) -> EditGraph:
    """Finds the nodes with the largest effects, all edges between them, and how much kept graphs of growing size explain.

    `graph_cost` gives the cost beforehand. It grows with the number of heads and tokens, and with
    the square of `n_nodes`.

    Args:
        bridge: the base; causal.
        reft: the edit.
        prompts: texts, conversations or one batch, without completions, all of one length in
            tokens.
        metric: of the logits after each prompt.
        n_nodes: how many directions, heads and MLPs to keep: those whose change alone has the
            largest absolute effect, mean over prompts. At least a third of the places are for
            directions.
        n_sizes: how many sizes of kept graphs to run, from all edges downwards.
        directions: for each site the directions that its nodes are, such as those rows of
            `decompose(...).write` that `identify` finds determined by the outputs; what they leave
            is a node as well. By default all write directions of these prompts.
        seed: seed of the control's random directions.
        memory_bytes: approximate limit for the activations of one run.
        progress: show a progress bar.

    Raises:
        ValueError: If prompts differ in length, the edit changes nothing, acts at the output of a
            head or MLP, the model has a recurrent part, or the numbers or directions do not fit.
    """
    require_whole_number("n_nodes", n_nodes, least=1)
    require_whole_number("n_sizes", n_sizes, least=1)
    batch = _of_one_length(bridge, prompts)
    names = [name for point in ("z", "mlp_out") for name in grid(bridge, point, "positions", n_pos=1).names]
    require_elsewhere(bridge, reft, names)
    require_heads_alone_mix(bridge, names)
    base = record(bridge, batch, names)
    graphs = []
    for source, bar in ((reft, "graph"), (turned(reft, seed=seed), "control")):
        # Given directions are of the edit; those of the control are found on its own changes.
        writes = directions_of(bridge, source, batch, directions if source is reft else None)
        if not writes:
            raise ValueError(_NO_EFFECT)
        edited = edited_run(bridge, source, batch, names)
        circuit = Circuit(bridge, base, edited, writes, metric, memory_bytes=memory_bytes)
        found = _graph(circuit, n_nodes, n_sizes, bar if progress else "")
        # Random directions without an effect are a finding, and a control without nodes.
        if source is reft and len(found.nodes) == 1:
            raise ValueError(_NONE_ALONE if found.whole.any() else _NO_EFFECT)
        graphs.append(found)
    return EditGraph(graphs[0], graphs[1], tokens=token_labels(bridge, batch)[0], sites=reft.site_names)


def graph_cost(bridge: TransformerBridge, reft: Reft, prompts: Given, *, n_nodes: int = 24, n_sizes: int = 10) -> int:
    """Returns how many runs of the edit's light cone `graph` takes at most for each prompt, with the control.

    Args:
        bridge: the base.
        reft: the edit.
        prompts: as for `graph`.
        n_nodes: as for `graph`.
        n_sizes: as for `graph`.
    """
    batch, cfg = _of_one_length(bridge, prompts), bridge.cfg
    edits = reft.edits(batch)
    columns = [edit.mask.any(0).nonzero().flatten().tolist() for edit in edits]
    first = min((column for some in columns for column in some), default=0)
    layers = cfg.n_layers - 1 - boundary_of(bridge, [edit.hook_name for edit in edits])
    # As many directions as the edit can write, or has tokens to write at; given ones leave one
    # more.
    ranks = [min(len(edit.intervention.basis()), int(edit.mask.sum())) + 1 for edit in edits]
    written = sum(len(some) * rank for some, rank in zip(columns, ranks, strict=True))
    one = written + layers * (cfg.n_heads + 1) * (batch.tokens.shape[1] - first)
    edges = n_nodes + n_nodes**2 // 2
    return 2 * (2 + one + edges + n_sizes * (2 * n_nodes + 2 * layers + 2))


def _of_one_length(bridge: TransformerBridge, prompts: Given) -> Batch:
    batch = as_batch(bridge, prompts)
    require_pairs(batch)
    lengths = batch.prompt_mask.sum(1).unique().tolist()
    if len(lengths) > 1:
        raise ValueError(
            f"nodes are at tokens, so all prompts must have the same number of them; these have {lengths[0]} to {lengths[-1]}"
        )
    return batch


def _graph(circuit: Circuit, n_nodes: int, n_sizes: int, progress: str) -> OneGraph:
    unedited, edited = metric_of(circuit.metric, circuit.base), metric_of(circuit.metric, circuit.edited)
    chosen, effects = _strongest(circuit, n_nodes, unedited)
    edges = _edges(circuit, chosen, unedited, progress)
    kept_edges = _sizes(edges, [node for node in chosen if node.site is not None], n_sizes)
    kept, lost = [], []
    for numbers in tqdm(kept_edges, desc=progress, unit="size", disable=not (progress and is_main_process())):
        into: dict[str, list[Node]] = {}
        by_name = {node.name: node for node in chosen}
        for number in numbers:
            into.setdefault(edges[number].target, []).append(by_name[edges[number].source])
        readers = [node for node in chosen if node.name in into]
        kept.append(circuit.alone(into, readers) - unedited)
        lost.append(edited - circuit.without(into, readers))
    n_layers = circuit.bridge.cfg.n_layers
    nodes = [GraphNode(node.name, _kind(node), node.layer, node.pos, effects[node.name]) for node in chosen]
    nodes.append(GraphNode(ANSWER, ANSWER, n_layers, circuit.last, float((edited - unedited).mean())))
    return OneGraph(edited - unedited, tuple(nodes), tuple(edges), kept_edges, torch.stack(kept), torch.stack(lost))


def _kind(node: Node) -> str:
    return "edit" if node.site is not None else "mlp" if node.head is None else "head"


def _strongest(circuit: Circuit, n_nodes: int, unedited: Float[Tensor, " pair"]) -> tuple[list[Node], dict[str, float]]:
    """Finds the nodes whose change alone has the largest effect, in the order of execution, directions of the edit first."""
    components = circuit.components()
    written = circuit.respond([Stream(None, [write]) for write in circuit.writes]).values
    changes = dict(zip((write.name for write in circuit.writes), written - unedited, strict=True))
    if components:
        patched = sweep(
            circuit.bridge,
            circuit.base,
            circuit.edited,
            [Cell((node.point,), node.pos, node.head) for node in components],
            circuit.metric,
            memory_bytes=circuit.memory_bytes,
        )
        changes |= dict(zip((node.name for node in components), (patched - unedited[:, None]).T, strict=True))
    # Absolute, or what raises the metric of some prompts and lowers that of others would count as
    # nothing.
    sizes = {name: float(change.abs().mean()) for name, change in changes.items()}
    ordered = sorted((name for name in sizes if sizes[name]), key=lambda name: -sizes[name])
    # Without directions no edge leads from the edit to the answer, and one of many directions does
    # little alone.
    written_names = {write.name for write in circuit.writes}
    first = [name for name in ordered if name in written_names][: max(1, n_nodes // 3)]
    names = list(dict.fromkeys([*first, *ordered]))[:n_nodes]
    chosen = [node for node in (*circuit.writes, *components) if node.name in names]
    return chosen, {name: float(changes[name].mean()) for name in names}


def _edges(circuit: Circuit, nodes: Sequence[Node], unedited: Float[Tensor, " pair"], progress: str) -> list[GraphEdge]:
    """Runs the path from every node to every later component among them, and to the answer; largest first."""
    base, found = circuit.base, list[tuple[float, GraphEdge]]()
    readers = [node for node in nodes if node.site is None]
    reply_bytes = sum(outputs.numel() * outputs.element_size() for outputs in base.activations.values())
    at_once = max(1, min(_SENDERS, circuit.memory_bytes // reply_bytes))
    hidden = not (progress and is_main_process())
    with tqdm(total=len(nodes), desc=progress, unit="sender", disable=hidden) as bar:
        for first in range(0, len(nodes), at_once):
            senders = nodes[first : first + at_once]
            replies = circuit.respond([circuit.one(sender) for sender in senders])
            for place, sender in enumerate(senders):
                # The answer is read at its own token alone.
                values = {ANSWER: replies.values[place]} if sender.pos == circuit.last else {}
                behind = [reader for reader in readers if sender.leads_to(reader)]
                outputs = {name: base.activations[name] for name in circuit.points}
                outputs |= {name: reply[place] for name, reply in replies.outputs.items()}
                read = Recording(base.batch, (), (), replies.logits[place], outputs, base.as_tuple)
                if behind:
                    cells = [Cell((reader.point,), reader.pos, reader.head) for reader in behind]
                    patched = sweep(
                        circuit.bridge, base, read, cells, circuit.metric, memory_bytes=circuit.memory_bytes
                    )
                    values |= dict(zip((reader.name for reader in behind), patched.T, strict=True))
                for reader, value in values.items():
                    change = value - unedited
                    if change.any():
                        edge = GraphEdge(sender.name, reader, float(change.mean()))
                        found.append((float(change.abs().mean()), edge))
                bar.update()
    return [edge for _, edge in sorted(found, key=lambda one: -one[0])]


def _sizes(edges: Sequence[GraphEdge], written: Sequence[Node], n_sizes: int) -> tuple[tuple[int, ...], ...]:
    """Chooses the kept graphs: of the n largest edges those that lie on a way from the edit to the answer, n growing."""
    # From all edges to one, each size by the same factor, as small graphs differ most.
    steps = torch.logspace(torch.tensor(float(max(len(edges), 1))).log10(), 0, n_sizes, dtype=torch.float64)
    found = {}
    for n in steps.round().long().tolist():
        numbers = _on_ways(edges[:n], {node.name for node in written})
        found[len(numbers)] = numbers
    return tuple(found[size] for size in sorted(found) if size) or ((),)


def _on_ways(edges: Sequence[GraphEdge], sources: set[str]) -> tuple[int, ...]:
    reached, leading = set(sources), {ANSWER}
    while True:
        forth = reached | {edge.target for edge in edges if edge.source in reached}
        back = leading | {edge.source for edge in edges if edge.target in leading}
        if (forth, back) == (reached, leading):
            break
        reached, leading = forth, back
    return tuple(n for n, edge in enumerate(edges) if edge.source in reached and edge.target in leading)
