"""The graph of an edit: from the directions that it writes, through heads and MLPs at their tokens, to the answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from reftlens.files.folder import write_whole
from reftlens.files.reading import read_json
from reftlens.results.base import Result

ANSWER = "answer"


@final
@dataclass(frozen=True)
class GraphNode:
    """A direction of the edit, a head or an MLP, at one token; or the answer."""

    name: str
    """"e0.1@4" is direction 1 of the edit's site 0 at token 4, "2.3@4" head 3 of block 2 there, "mlp2@4" its MLP."""
    kind: str
    """"edit", "head", "mlp" or "answer"."""
    layer: int
    """The block of a head or an MLP, the first block that can read a direction, and for the answer the number of blocks."""
    pos: int
    """The token; the last one for the answer."""
    effect: float
    """The effect of its change alone, with everything behind it recomputed; the whole effect for the answer."""


@final
@dataclass(frozen=True)
class GraphEdge:
    """The change of one node as only one other reads it."""

    source: str
    target: str
    value: float
    """Its effect on the metric, mean over examples. Effects of either sign may cancel here."""


@final
@dataclass(frozen=True, eq=False)
class OneGraph:
    """Nodes and edges of one edit, and how much of its effect graphs of growing size have."""

    whole: Float[Tensor, " example"]
    """The effect of the whole edit."""
    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]
    """Largest first, by the mean absolute effect over examples."""
    kept_edges: tuple[tuple[int, ...], ...]
    """For each size, the numbers of the edges that are kept: the largest, of those on a way from the edit to the answer."""
    kept: Float[Tensor, "size example"]
    """The effect of the kept edges alone, with all others held to the base."""
    lost: Float[Tensor, "size example"]
    """What the whole effect loses without the kept edges."""

    def pruned(self, share: float = 0.9) -> tuple[GraphEdge, ...]:
        """Returns the smallest kept graph whose effect is within 1 - share of the whole effect; otherwise the nearest one.

        How far it is off is the mean absolute difference over examples, so that too much in one
        does not make up for too little in another.

        Args:
            share: of the whole effect.
        """
        good = self._within(share).nonzero().flatten().tolist()
        place = good[0] if good else int(self._off().argmin())
        return tuple(self.edges[number] for number in self.kept_edges[place])

    def reaches(self, share: float = 0.9) -> bool:
        """Returns whether any kept graph is within 1 - share of the whole effect.

        Args:
            share: of the whole effect.
        """
        return bool(self._within(share).any())

    def _off(self) -> Float[Tensor, " size"]:
        return (self.kept - self.whole).abs().mean(1)

    def _within(self, share: float) -> Bool[Tensor, " size"]:
        return self._off() <= (1 - share) * self.whole.abs().mean()

    def faithfulness(self) -> Float[Tensor, " size"]:
        """Returns the effect of each kept graph as a fraction of the whole effect."""
        return self.kept.mean(1) / self.whole.mean()


@final
@dataclass(frozen=True, eq=False, repr=False)
class EditGraph(Result):
    """The graph of an edit, and that of the edit turned to random directions."""

    edit: OneGraph
    control: OneGraph
    tokens: tuple[str, ...]
    """Tokens of the first prompt."""
    sites: tuple[str, ...]
    """Names of the edit's sites, in the order of "e0", "e1", ..."""

    def headline(self) -> str:
        edges = self.edit.pruned()
        at = next(n for n, kept in enumerate(self.edit.kept_edges) if len(kept) == len(edges))
        return (
            f"effect {float(self.edit.whole.mean()):.3g}; {len(edges)} of {len(self.edit.edges)} edges alone have "
            f"{float(self.edit.kept[at].mean()):.3g} of it, and it loses {float(self.edit.lost[at].mean()):.3g} without them; "
            f"{len(self.edit.whole)} examples; turned to random directions: effect {float(self.control.whole.mean()):.3g}, "
            f"{len(self.control.pruned())} edges"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per edge, largest first: its ends, its effect, and whether the pruned graph has it."""
        pruned = set(self.edit.pruned())
        lines = [(edge.source, edge.target, edge.value, edge in pruned) for edge in self.edit.edges]
        return pd.DataFrame(lines, columns=["sender", "receiver", "value", "kept"])

    def curve(self) -> pd.DataFrame:
        """Returns one row per size of the kept graph: its edges, their effect alone, and the loss without them; with control."""
        frames = []
        for name, one in (("edit", self.edit), ("control", self.control)):
            sizes = [len(kept) for kept in one.kept_edges]
            frames.append(
                pd.DataFrame({"graph": name, "edges": sizes, "alone": one.kept.mean(1), "lost": one.lost.mean(1)})
            )
        return pd.concat(frames, ignore_index=True)

    def to_circuit_tracer(self, slug: str = "edit", *, share: float = 0.9) -> dict[str, Any]:
        """Returns the graph as circuit-tracer's viewer reads it (its `graph_models.py`, github.com/safety-research/circuit-tracer).

        All nodes and edges are in it; those of the pruned graph are pinned. Weights are
        interventional effects. The viewer wants a probability of the answer, for which it gets 1,
        and features with examples, which an edit does not have.

        Args:
            slug: name of the graph.
            share: as of `OneGraph.pruned`.
        """
        # Directions of the edit are drawn where they are written, below the block that reads them.
        rows = {n.name: str(n.layer if n.kind != "edit" else n.layer - 1).replace("-1", "E") for n in self.edit.nodes}
        ids = {node.name: f"{rows[node.name]}_{number}_{node.pos}" for number, node in enumerate(self.edit.nodes)}
        edges = self.edit.pruned(share)
        pinned = dict.fromkeys(ids[name] for edge in edges for name in (edge.source, edge.target))
        kinds = {"edit": "edit direction", "head": "attention head", "mlp": "mlp", "answer": "logit"}
        nodes = [
            {
                "node_id": ids[node.name],
                "feature": number,
                "layer": rows[node.name],
                "ctx_idx": node.pos,
                "feature_type": kinds[node.kind],
                "token_prob": float(node.kind == "answer"),
                "is_target_logit": node.kind == "answer",
                "run_idx": 0,
                "reverse_ctx_idx": 0,
                "jsNodeId": f"{rows[node.name]}_{number}-0",
                # The viewer reads a token between the quotes and a number behind "(p=".
                "clerp": f'Output "{ANSWER}" (p=1.000)' if node.kind == "answer" else self.said(node),
                "influence": None,
                "activation": node.effect,
            }
            for number, node in enumerate(self.edit.nodes)
        ]
        links = [{"source": ids[e.source], "target": ids[e.target], "weight": e.value} for e in self.edit.edges]
        metadata = {
            "slug": slug,
            "scan": "reftlens",
            "transcoder_list": [],
            "prompt_tokens": list(self.tokens),
            "prompt": "".join(self.tokens),
            "node_threshold": None,
        }
        shown = {"pinnedIds": list(pinned), "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
        return {"metadata": metadata, "qParams": shown, "nodes": nodes, "links": links}

    def save_circuit_tracer(self, folder: str | Path, slug: str = "edit") -> Path:
        """Writes the graph to a folder, which `circuit_tracer.frontend` serves, and adds it to the viewer's list of graphs there.

        Args:
            folder: made if it is not there.
            slug: name of the graph, and of its file. A graph of this name is replaced.

        Returns:
            The file of the graph.

        Raises:
            ValueError: If the name is not that of a file in the folder, or is that of the list.
        """
        if slug in ("", "graph-metadata") or Path(slug).name != slug:
            raise ValueError(
                f"slug must be a file name without a folder, and not that of the list of graphs, got {slug!r}"
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        graph, listed = self.to_circuit_tracer(slug), folder / "graph-metadata.json"
        others = read_json(listed)["graphs"] if listed.exists() else []
        graphs = [*(other for other in others if other["slug"] != slug), graph["metadata"]]
        path = folder / f"{slug}.json"
        # The list last, so that it never names a graph that is not there.
        for file, content in ((path, graph), (listed, {"graphs": graphs})):
            write_whole(file, (json.dumps(content, indent=2) + "\n").encode())
        return path

    def said(self, node: GraphNode) -> str:
        """Returns what a node is, in words.

        Args:
            node: of the graph.
        """
        name, _, _ = node.name.partition("@")
        token = self.tokens[node.pos]
        if node.kind == "edit":
            site, _, direction = name[1:].partition(".")
            return f"direction {direction} of {self.sites[int(site)]} at {token!r}"
        return f"{'head' if node.kind == 'head' else 'MLP'} {name.removeprefix('mlp')} at {token!r}"
