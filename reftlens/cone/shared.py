"""Lets several analyses share the base runs of their prompts: inside the context, each prompt runs once.

    with shared(bridge):
        analysis.dose(bridge, reft, examples)
        analysis.interchange(bridge, hook_name, subspace, base, source)

`hold` and what is built on it look here first. A run is kept for each prompt, found by its tokens,
without its padding: other batches, padded on other sides, find it as well. It is kept from the
lowest block and the first column that any cone has asked for. Kept runs take up to a number of
bytes; prompts that no longer fit run again each time, as without the context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, final

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from reftlens.bridge import hooked, plain_blocks, unembedded_alone, with_cache
from reftlens.cone.light_cone import Held
from reftlens.cone.recording import repeated
from reftlens.data import Batch

_Function = TypeVar("_Function", bound=Callable[..., Any])

MEMORY_BYTES = 2**30

# A context variable, so that another thread with another bridge does not see these runs.
_OPEN: ContextVar[tuple[SharedRuns, ...]] = ContextVar("shared base runs", default=())


@contextmanager
def shared(bridge: TransformerBridge, *, memory_bytes: int = MEMORY_BYTES) -> Iterator[SharedRuns]:
    """Opens a context in which the base runs of prompts are kept, for cones of this bridge. The base must not change inside.

    Args:
        bridge: the base, without edits attached.
        memory_bytes: limit of what is kept.

    Yields:
        The runs, or those of a context that is already open for this bridge.
    """
    there = shared_runs(bridge)
    if there is not None:
        yield there
        return
    token = _OPEN.set((*_OPEN.get(), SharedRuns(bridge, memory_bytes)))
    try:
        yield _OPEN.get()[-1]
    finally:
        _OPEN.reset(token)


def sharing(function: _Function) -> _Function:
    """Wraps a function, whose first argument is a bridge, so that it runs inside `shared`."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with shared(args[0] if args else kwargs["bridge"]):
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def shared_runs(bridge: TransformerBridge) -> SharedRuns | None:
    """Returns the base runs that are shared at this place; None outside such a context."""
    return next((runs for runs in _OPEN.get() if runs.bridge is bridge), None)


@final
@dataclass(frozen=True, eq=False)
class _Group:
    """Base runs of one batch: what its cones need from outside, from one block and column on."""

    boundary: int
    start: int
    resid: dict[int, Tensor]
    """Layer -> output of that block in the columns from `start` on, for blocks from the boundary on."""
    past: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values of all columns, for the blocks after the boundary."""
    as_tuple: bool

    def n_bytes(self) -> int:
        tensors = [*self.resid.values(), *(tensor for pair in self.past for tensor in pair)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@final
@dataclass(frozen=True, eq=False)
class _Row:
    group: _Group
    row: int
    first: int
    """Column of its first token in the group's batch."""


@final
class SharedRuns:
    """Base runs of prompts, by their tokens."""

    def __init__(self, bridge: TransformerBridge, memory_bytes: int) -> None:
        self.bridge, self.memory_bytes = bridge, memory_bytes
        self.n_run = 0
        """Prompts that have been run."""
        self._rows: dict[tuple[int, ...], _Row] = {}

    def n_bytes(self) -> int:
        """Memory of the kept tensors in bytes."""
        return sum(group.n_bytes() for group in {id(row.group): row.group for row in self._rows.values()}.values())

    def held(self, batch: Batch, boundary: int, start: int, *, columns: bool) -> Held | None:
        """Cuts a cone, after running the prompts that are not kept. None if a prompt has gaps.

        Args:
            batch: the inputs.
            boundary: the last block that the cone skips.
            start: the first column of the cone.
            columns: whether keys and values of this model stand for earlier columns.
        """
        keys, firsts = _keys(batch)
        if keys is None:
            return None
        missing = [
            row for row, key in enumerate(keys) if not self._serves(self._rows.get(key), boundary, start - firsts[row])
        ]
        made = self._run(batch, keys, firsts, missing, boundary, start, columns=columns) if missing else {}
        # Runs that were just made serve this call even if they do not fit.
        rows = [made[key] if key in made else self._rows[key] for key in keys]
        return _cut(batch, rows, firsts, boundary, start)

    @staticmethod
    def _serves(known: _Row | None, boundary: int, start: int) -> bool:
        """Whether a kept run reaches down to this block, and to this token of its prompt."""
        return (
            known is not None and known.group.boundary <= boundary and known.group.start - known.first <= max(0, start)
        )

    def _run(
        self,
        batch: Batch,
        keys: Sequence[tuple[int, ...]],
        firsts: Sequence[int],
        missing: Sequence[int],
        boundary: int,
        start: int,
        *,
        columns: bool,
    ) -> dict[tuple[int, ...], _Row]:
        """Runs these rows, and keeps them if they fit."""
        known = [self._rows[keys[row]].group for row in missing if keys[row] in self._rows]
        if known:
            # A later cone begins earlier than those before it. The prompts run once more, and the
            # next one is foreseen.
            boundary, start = min(boundary, *(group.boundary for group in known)), 0
        some = repeated(batch, torch.tensor(missing))
        group = _record(self.bridge, some, boundary, start, columns=columns)
        self.n_run += len(missing)
        for row in missing:
            # Replaced runs must not count against the limit.
            self._rows.pop(keys[row], None)
        made = {keys[row]: _Row(group, place, firsts[row]) for place, row in enumerate(missing)}
        if self.n_bytes() + group.n_bytes() <= self.memory_bytes:
            self._rows |= made
        return made


def _keys(batch: Batch) -> tuple[list[tuple[int, ...]] | None, list[int]]:
    """Returns each row's tokens without padding, and the column of the first; None if one has padding between its tokens."""
    keys, firsts = [], []
    for tokens, mask in zip(batch.tokens.cpu(), batch.attention_mask.bool().cpu(), strict=True):
        place = mask.nonzero().flatten()
        if not len(place) or int(place[-1] - place[0]) + 1 != len(place):
            return None, []
        keys.append(tuple(tokens[mask].tolist()))
        firsts.append(int(place[0]))
    return keys, firsts


@torch.no_grad()
def _record(bridge: TransformerBridge, batch: Batch, boundary: int, start: int, *, columns: bool) -> _Group:
    resid: dict[int, Tensor] = {}
    seen = {"tuple": False}

    def keep(layer: int) -> Callable[..., None]:
        def hook_fn(activation: Tensor, hook: Any) -> None:
            resid[layer] = activation[:, start:].clone()

        return hook_fn

    cache = DynamicCache() if columns else None
    caching: dict[str, Any] = {"use_cache": False} if cache is None else with_cache(bridge, cache)
    layers = range(max(boundary, 0), bridge.cfg.n_layers)
    handle = bridge.blocks[0].register_forward_hook(lambda _m, _a, output: seen.update(tuple=isinstance(output, tuple)))
    no_logits = torch.zeros_like(batch.attention_mask, dtype=torch.bool)
    try:
        hooks = [(f"blocks.{layer}.hook_out", keep(layer)) for layer in layers]
        with hooked(bridge, hooks), plain_blocks(bridge), unembedded_alone(bridge, no_logits):
            bridge(batch.tokens, attention_mask=batch.attention_mask, **caching)
    finally:
        handle.remove()
    past = [] if cache is None else cache.layers[boundary + 1 :]
    return _Group(boundary, start, resid, tuple((layer.keys, layer.values) for layer in past), seen["tuple"])


def _cut(batch: Batch, rows: Sequence[_Row], firsts: Sequence[int], boundary: int, start: int) -> Held:
    width = batch.tokens.shape[1]
    lengths = batch.attention_mask.sum(dim=1).tolist()
    # The kept column of each token. Padding gets some token's activations, which the attention mask
    # leaves out.
    places = torch.stack(
        [
            (torch.arange(width) - first).clamp(0, length - 1) + row.first
            for row, first, length in zip(rows, firsts, lengths, strict=True)
        ]
    )

    def of(tensors: Sequence[Tensor], places: Int[Tensor, "batch n"]) -> Tensor:
        return _picked(tensors, [row.row for row in rows], places)

    resid = None
    if boundary >= 0:
        begun = torch.tensor([row.group.start for row in rows])[:, None]
        resid = of([row.group.resid[boundary] for row in rows], (places[:, start:] - begun).clamp(min=0))
    past: list[tuple[Tensor, Tensor]] = []
    layers = range(boundary + 1, rows[0].group.boundary + 1 + len(rows[0].group.past)) if start else ()
    for layer in layers:
        pairs = [row.group.past[layer - row.group.boundary - 1] for row in rows]
        keys, values = (of(tensors, places[:, :start]) for tensors in zip(*pairs, strict=True))
        past.append((keys, values))
    return Held(batch, start, boundary, resid, tuple(past), rows[0].group.as_tuple)


def _picked(tensors: Sequence[Tensor], rows: Sequence[int], places: Int[Tensor, "batch n"]) -> Tensor:
    """Takes one row of each tensor, and these columns of it; columns are the last axis but one."""
    tensor, place = tensors[0], places[0]
    n = len(place)
    together = all(other is tensor for other in tensors) and bool((places == place).all())
    if together and n and int(place[-1] - place[0]) + 1 == n and bool((place[1:] > place[:-1]).all()):
        # The usual case, neighbouring columns of one batch, needs no copy.
        part = tensor.narrow(-2, int(place[0]), n)
        return part if list(rows) == list(range(len(tensor))) else part[torch.tensor(rows, device=tensor.device)]
    device = tensor.device
    return torch.stack(
        [t[row].index_select(-2, at.to(device)) for t, row, at in zip(tensors, rows, places, strict=True)]
    )
