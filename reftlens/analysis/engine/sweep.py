"""Computes every cell of a patching map exactly, in few runs.

A cell patches one activation of the source run into the base run: at one layer (or a window of
layers), one position (or all), and one head (or all). A cell can only change its light cone. So
cells at neighbouring positions run as rows of one batch, from the first of these positions on. Each
row is patched at its own position and computed from its own layer on. Everything before comes from
one recording of the base run. Rows whose patch does not change any bit are not run: their value is
the base's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.grid import Cell
from reftlens.analysis.engine.saved import Saved
from reftlens.analysis.metrics import Metric, require_pairs_of
from reftlens.bridge import (
    HookFunction,
    each,
    hooked,
    is_main_process,
    is_resid_mid,
    last_block_alone,
    last_block_splits,
    layer_of,
    resid_pre_inside,
    written_whole,
)
from reftlens.cone.hold import run_cone
from reftlens.cone.recording import Recording, joining, rows_of, rows_that_fit
from reftlens.edit.hooks import Edit

TOKENS, COLUMNS = 1024, 3
"""Target number of tokens in one CPU run, and the column spread of a wide model. With fewer tokens,
reading the weights costs more than computing with them. With a larger spread, cells run more than
their own cones.
"""
_OVERHEAD = 1.3e7
"""Multiplications that take as long as the Python of one block (.65 ms, at 20 billion a second)."""

_Tile = tuple[Int[Tensor, " n"], Int[Tensor, " n"]]
"""Pairs and cells of one run, row by row."""

_ENTRY = ("blocks.0.hook_in", "blocks.0.hook_resid_pre")
"""What enters the first block is recorded with its edits."""


@torch.no_grad()
def sweep(
    bridge: TransformerBridge,
    base: Recording,
    source: Recording,
    cells: Sequence[Cell],
    metric: Metric,
    *,
    memory_bytes: int,
    edits: Sequence[Edit] = (),
    saved: Saved | None = None,
    progress: str = "",
) -> Float[Tensor, "pair cell"]:
    """Computes the metric of every pair under every cell.

    Args:
        bridge: the model, without hooks.
        base: the recording that is patched, with the cells' points.
        source: the recording that patches come from, with the same points on a batch of the same
            shape.
        cells: the patches, each applied separately.
        metric: of the logits after the last token.
        memory_bytes: approximate limit for the activations of one run.
        edits: of the base run, if it was recorded under some.
        saved: keeps finished cells, and those of an earlier run are taken from it.
        progress: what the progress bar says; none if empty.

    Returns:
        NaN where a pair has no token at the cell's position.
    """
    require_pairs_of(metric, len(base.batch))
    plan = _Plan(bridge, base, source, cells, memory_bytes, edits)
    pairs = torch.arange(len(base.batch), device=base.logits.device)
    unpatched = metric(base.logits, pairs).float().cpu()
    # Cells that change no bit keep this value.
    values = torch.where(plan.exists, unpatched[:, None], torch.nan)
    todo = plan.changes.clone()
    if saved is not None:
        done, found = saved.read(values.shape)
        values, todo = torch.where(done, found, values), todo & ~done
    tiles = list(plan.tiles(todo))

    def run(tile: _Tile) -> Float[Tensor, " n"]:
        pair, cell = tile
        logits = _run(bridge, base, source, [cells[c] for c in cell.tolist()], pair, plan.start[pair, cell], edits)
        return metric(logits, pair.to(logits.device)).float().cpu()

    hidden = not (progress and is_main_process())
    with tqdm(total=int(todo.sum()), desc=progress, unit="cell", disable=hidden) as bar:
        for (pair, cell), found in zip(tiles, each(bridge, run, tiles), strict=True):
            values[pair, cell] = found
            todo[pair, cell] = False
            bar.update(len(pair))
            if saved is not None:
                # After every run, so that an interruption costs one run at most.
                saved.write(values, ~todo)
    return values


def _run(
    bridge: TransformerBridge,
    base: Recording,
    source: Recording,
    cells: Sequence[Cell],
    pair: Int[Tensor, " n"],
    starts: Int[Tensor, " n"],
    edits: Sequence[Edit],
) -> Float[Tensor, "n d_vocab"]:
    """The last logits of each row, one pair under one cell; earlier layers come first."""
    layers = torch.tensor([cell.layer for cell in cells])
    start = int(starts.min())
    if edits:
        # An edit inside a block wants all rows there.
        layers = layers[:1].expand_as(layers)

    def patching(name: str) -> Any:
        places = [
            (row, column, *(() if cell.head is None else (cell.head,)))
            for row, cell in enumerate(cells)
            if name in cell.hook_names
            for column in (range(held.start, held.batch.tokens.shape[1]) if cell.pos is None else (cell.pos,))
        ]
        there = source.activations[name]
        row, column, *head = torch.tensor(places, device=there.device).T
        written = there[(pair.to(there.device)[row], column, *head)]

        def hook_fn(activation: Tensor, hook: Any) -> Tensor:
            return activation.index_put((row, column - held.start, *head), written)

        return hook_fn

    # An edit may act inside that MLP, where it wants all tokens. Asked before blocks are replaced,
    # because a proof is of a model with the forwards that it has: inside, it would be made again in
    # every run.
    splits = not edits and last_block_splits(bridge)
    with joining(bridge, base, start, pair, layers) as held:
        names = dict.fromkeys(name for cell in cells for name in cell.hook_names)
        hooks = [hook for name in names for hook in writing(bridge, name, patching(name))]
        if held.boundary < 0:
            # The base run may have been noised or edited before its first block.
            entering = rows_of(base.resid[0][:, held.start :], pair)
            hooks.insert(0, ("blocks.0.hook_in", lambda resid, hook: entering))
        last = torch.zeros_like(held.batch.prompt_mask).scatter(1, rows_of(base.read, pair)[:, None], True)
        alone = last_block_alone(bridge, last[:, held.start :]) if splits else nullcontext()
        with hooked(bridge, hooks), alone:
            return run_cone(bridge, held, _inside(edits, held.boundary + 1, held.start, pair), logits_at=last)


def writing(bridge: TransformerBridge, name: str, write: HookFunction) -> list[tuple[str, HookFunction]]:
    """Returns the hooks by which all readers of a point see what is written there.

    Args:
        bridge: the model.
        name: the point.
        write: changes the activation.
    """
    if is_resid_mid(name):
        return written_whole(name, [write], read_at=resid_pre_inside(bridge, name))
    return [(name, write)]


def _inside(edits: Sequence[Edit], layer: int, start: int, pair: Int[Tensor, " n"]) -> list[Edit]:
    """Returns the edits that still have to be applied in a cone; the recording includes the others."""
    kept = []
    for edit in edits:
        place = layer_of(edit.hook_name)
        behind = edit.hook_name.startswith(("ln_final", "unembed")) if place is None else place >= layer
        lands = rows_of(edit.changed, pair)
        # Earlier columns come from the recording, which has their edits.
        lands[:, :start] = False
        if behind and edit.hook_name not in _ENTRY and bool(lands.any()):
            kept.append(replace(edit, mask=rows_of(edit.mask, pair), lands=lands))
    return kept


def _changed(
    cell: Cell, differs: Mapping[str, Bool[Tensor, "pair pos *axes"]], prompt: Bool[Tensor, "pair pos"]
) -> Bool[Tensor, "pair pos"]:
    """Prompt tokens where the cell writes something else than is there."""
    columns = torch.zeros_like(prompt)
    for name in cell.hook_names:
        there = differs[name] if cell.head is None else differs[name][..., cell.head]
        columns |= there if there.ndim == 2 else there.any(-1)
    if cell.pos is not None:
        columns &= torch.arange(prompt.shape[1]) == cell.pos
    return columns & prompt


@final
class _Plan:
    """Decides which cells change anything, from which column on, and which of them run together."""

    def __init__(
        self,
        bridge: TransformerBridge,
        base: Recording,
        source: Recording,
        cells: Sequence[Cell],
        memory_bytes: int,
        edits: Sequence[Edit],
    ) -> None:
        prompt = base.batch.prompt_mask.cpu()
        self.width = prompt.shape[1]
        self.bridge, self.cells, self.memory_bytes = bridge, cells, memory_bytes
        self.tokens = TOKENS if base.logits.device.type == "cpu" else None
        names = dict.fromkeys(name for cell in cells for name in cell.hook_names)
        differs = {name: (base.activations[name] != source.activations[name]).any(-1).cpu() for name in names}
        changed = torch.stack([_changed(cell, differs, prompt) for cell in cells], dim=1)
        self.exists = torch.stack([prompt.any(1) if c.pos is None else prompt[:, c.pos] for c in cells], dim=1)
        self.changes: Bool[Tensor, "pair cell"] = changed.any(-1)
        self.start: Int[Tensor, "pair cell"] = changed.int().argmax(-1)
        for edit in edits:
            if edit.intervention.across_tokens:
                # Its change behind the patch depends on all its tokens, so they are run again,
                # unchanged ones too.
                read = edit.read.cpu()
                first = torch.where(read.any(1), read.int().argmax(1), self.width)
                self.start = torch.minimum(self.start, first[:, None])

    def _columns(self, rows: float) -> int:
        """Returns the column spread at which a run costs least, with so many rows for each column.

        A spread of c columns computes about rows (c - 1) / 2 tokens more for each column, of 24 d^2
        multiplications in a block, and shares the Python of a block among c columns.
        """
        return max(COLUMNS, int((2 * _OVERHEAD / (24 * self.bridge.cfg.d_model**2 * max(rows, 1.0))) ** 0.5))

    def tiles(self, todo: Bool[Tensor, "pair cell"]) -> Iterator[_Tile]:
        """Pairs and cells of one run after another."""
        layers = torch.tensor([cell.layer for cell in self.cells])
        pair, cell = todo.nonzero(as_tuple=True)
        starts, first = self.start[pair, cell], layers[cell]
        # By column first: all rows begin at the earliest column, but each at its own layer.
        order = (starts * self.bridge.cfg.n_layers + first).argsort(stable=True)
        columns = self._columns(len(order) / max(1, len(starts.unique())))
        while len(order):
            start = int(starts[order[0]])
            count = rows_that_fit(self.bridge, self.width, start, self.memory_bytes)
            if self.tokens is not None:
                near = int((starts[order] < start + columns).sum())
                count = min(count, near, -(-self.tokens // (self.width - start)))
            rows = order[:count]
            # `joining` lets rows enter one after another, layer by layer.
            rows = rows[first[rows].argsort(stable=True)]
            yield pair[rows], cell[rows]
            order = order[count:]
