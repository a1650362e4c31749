"""Records one whole run of the base, from which any cone can be cut.

`cone.hold` runs the base once per cone. Sweeps over layers and positions need hundreds of cones of
one batch. A recording keeps the input and output of every block, and the keys and values of all
positions. `Recording.cone` cuts a cone from it and repeats rows, so that several cells of a sweep
run in one batch.

    recording = record(bridge, batch)
    held = recording.cone(boundary=3, start=5, rows=torch.tensor([0, 0, 1]))
    logits = run_cone(bridge, held, edits)

Rows of one run may begin at different layers: `joining` computes each row from its own layer on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from reftlens.bridge import (
    TOLERANCE,
    blocks_replaced,
    canonical_hooks,
    difference,
    hooked,
    is_causal,
    made_up,
    masked_columns,
    plain_blocks,
    proved,
    require_causal,
    unembedded_alone,
    with_cache,
)
from reftlens.cone.light_cone import Held, run_cone
from reftlens.cone.proof import ALL, Parts, as_batch, parts_of
from reftlens.data import Batch


@final
@dataclass(frozen=True, eq=False)
class Recording:
    """The recorded activations of one whole run of a batch."""

    batch: Batch
    resid: tuple[Float[Tensor, "batch pos d_model"], ...]
    """Input of the first block, then the output of each block."""
    past: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values `[batch, kv_head, pos, d_head]` of each block."""
    logits: Float[Tensor, "batch d_vocab"]
    """Logits at the last token of each prompt; for a masked language model, at its mask token."""
    activations: Mapping[str, Float[Tensor, "batch pos *axes"]]
    """Hook name as requested -> activation there."""
    as_tuple: bool
    """Whether this architecture's blocks return a tuple."""
    parts: Parts = ALL
    """The parts of a run that cones of this model may skip."""
    masked: Int[Tensor, " batch"] | None = None
    """Columns of the mask tokens, if logits are read there."""

    @property
    def read(self) -> Int[Tensor, " batch"]:
        """The column of each row whose logits are kept."""
        return self.batch.last_prompt_index if self.masked is None else self.masked

    def cone(self, boundary: int, start: int, rows: Int[Tensor, " n"] | None = None) -> Held:
        """Cuts the cone that `hold` would make for these rows. It begins earlier on a model whose cones may skip less.

        Args:
            boundary: the last block that is skipped; -1 to run all of them, from the embeddings on.
            start: the cone's first column.
            rows: row indices of the batch, repeated as needed; all rows once by default.

        Raises:
            ValueError: If there is no such block or column.
        """
        n_layers, n_pos = len(self.resid) - 1, self.batch.tokens.shape[1]
        if not (-1 <= boundary < n_layers and 0 <= start < n_pos):
            raise ValueError(
                f"boundary must be in [-1, {n_layers - 1}] and start in [0, {n_pos - 1}], got {boundary} and {start}"
            )
        boundary, start = boundary if self.parts.layers else -1, start if self.parts.columns else 0
        rows = torch.arange(len(self.batch)) if rows is None else rows
        resid = rows_of(self.resid[boundary + 1][:, start:], rows) if boundary >= 0 else None
        later = self.past[boundary + 1 :] if start else ()
        past = tuple((rows_of(k[..., :start, :], rows), rows_of(v[..., :start, :], rows)) for k, v in later)
        return Held(repeated(self.batch, rows), start, boundary, resid, past, self.as_tuple)


@contextmanager
def joining(
    bridge: TransformerBridge, recording: Recording, start: int, rows: Int[Tensor, " n"], layers: Int[Tensor, " n"]
) -> Iterator[Held]:
    """Opens a context with a cone in which each row is computed from its own layer on. Earlier outputs come from the recording.

    On a model whose cones may skip less, or whose blocks cannot run for only some rows, the cone
    begins earlier for all rows: `held.start` and `held.boundary` say where. Hooks inside a block
    see only the rows that have begun. Hooks at the ends of a block see all rows.

    Args:
        bridge: the model.
        recording: of the base.
        start: the cone's first column.
        rows: of the recording's batch.
        layers: the first block of each row, in ascending order.

    Yields:
        The cone to run while the context is open.
    """
    start = start if recording.parts.columns else 0
    if not recording.parts.layers:
        layers = torch.zeros_like(layers)
    elif not rows_join(bridge):
        layers = layers[:1].expand_as(layers)
    with _joining(bridge, recording, start, rows, layers) as held:
        yield held


@contextmanager
def _joining(
    bridge: TransformerBridge, recording: Recording, start: int, rows: Int[Tensor, " n"], layers: Int[Tensor, " n"]
) -> Iterator[Held]:
    first, n_layers = int(layers[0]), len(recording.resid) - 1
    # Layers ascend, so the rows that have begun at a layer are always the first n.
    begun = [int((layers <= layer).sum()) for layer in range(first, n_layers)]
    later = zip(begun, recording.past[first:], strict=True) if start else ()
    past = tuple((rows_of(k[..., :start, :], rows[:n]), rows_of(v[..., :start, :], rows[:n])) for n, (k, v) in later)
    resid = rows_of(recording.resid[first][:, start:], rows) if first else None
    held = Held(repeated(recording.batch, rows), start, first - 1, resid, past, recording.as_tuple)

    def partly(forward: Any, n: int, layer: int) -> Any:
        def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            total = len(hidden_states)
            args, kwargs = (_of_rows(given, n, total) for given in (args, kwargs))
            output = forward(hidden_states[:n], *args, **kwargs)
            resid = output[0] if isinstance(output, tuple) else output
            # Rows that have not begun take the block's recorded output.
            resid = torch.cat([resid, rows_of(recording.resid[layer + 1][:, start:], rows[n:]).to(resid.device)])
            return (resid, *output[1:]) if isinstance(output, tuple) else resid

        return run

    forwards = {
        layer: partly(bridge.blocks[layer].original_component.forward, n, layer)
        for layer, n in enumerate(begun, start=first)
        if n < len(rows)
    }
    with blocks_replaced(bridge, forwards):
        yield held


def _of_rows(given: Any, n: int, total: int) -> Any:
    """Cuts every block argument that has one entry per row (masks, positions) to its first n rows."""
    if isinstance(given, Tensor):
        # One-dimensional arguments, such as positions in the cache, count columns, not rows.
        return given[:n] if given.ndim > 1 and len(given) == total else given
    if isinstance(given, tuple):
        return tuple(_of_rows(part, n, total) for part in given)
    if isinstance(given, dict):
        return {name: _of_rows(part, n, total) for name, part in given.items()}
    return given


def rows_of(tensor: Shaped[Tensor, "batch *axes"], rows: Int[Tensor, " n"]) -> Shaped[Tensor, "n *axes"]:
    """Takes rows of a tensor on its own device: the layers of a base may be spread over several.

    Args:
        tensor: one row per example.
        rows: indices, on any device.
    """
    return tensor[rows.to(tensor.device)]


def repeated(batch: Batch, rows: Int[Tensor, " n"]) -> Batch:
    """Returns these rows of a batch, repeated as given, without the texts."""
    rows = rows.to(batch.tokens.device)
    tokens, attention, prompt = batch.tokens[rows], batch.attention_mask[rows], batch.prompt_mask[rows]
    return replace(
        batch,
        tokens=tokens,
        attention_mask=attention,
        prompt_mask=prompt,
        labels=batch.labels[rows],
        texts=None,
        offsets=None,
    )


@torch.no_grad()
def record(
    bridge: TransformerBridge, batch: Batch, hook_names: Sequence[str] = (), *, masked: bool = False
) -> Recording:
    """Runs a batch once and records the run, with any hooks that are attached.

    Args:
        bridge: the model.
        batch: the inputs.
        hook_names: further points whose activations are recorded.
        masked: whether a masked language model may be recorded, with its logits read at mask
            tokens.

    Raises:
        ValueError: If the model is bidirectional and `masked` is False, a prompt does not have
            exactly one mask token, or a point does not exist or cannot be edited.
    """
    if not masked:
        require_causal(bridge, "a recording of keys and values")
    at = None if is_causal(bridge) else masked_columns(bridge, batch.tokens)
    return _record(bridge, batch, hook_names, parts_of(bridge, batch), at)


def _record(
    bridge: TransformerBridge,
    batch: Batch,
    hook_names: Sequence[str],
    parts: Parts,
    at: Int[Tensor, " batch"] | None = None,
) -> Recording:
    n_layers = bridge.cfg.n_layers
    seen: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook_fn(activation: Tensor, hook: Any) -> None:
            seen[name] = activation.clone()

        return hook_fn

    resid_names = ["blocks.0.hook_in", *(f"blocks.{layer}.hook_out" for layer in range(n_layers))]
    points = zip((*resid_names, *hook_names), canonical_hooks(bridge, [*resid_names, *hook_names]), strict=True)
    cache = DynamicCache() if parts.columns else None
    caching = {"use_cache": False} if cache is None else with_cache(bridge, cache)
    read = batch.last_prompt_index if at is None else at
    last = torch.zeros_like(batch.prompt_mask).scatter(1, read[:, None], True)
    handle = bridge.blocks[0].register_forward_hook(lambda _m, _a, output: seen.update(tuple=isinstance(output, tuple)))
    try:
        hooks = [(point, keep(name)) for name, point in points]
        with hooked(bridge, hooks), plain_blocks(bridge), unembedded_alone(bridge, last):
            logits = bridge(batch.tokens, attention_mask=batch.attention_mask, **caching)[0]
    finally:
        handle.remove()
    return Recording(
        batch=batch,
        resid=tuple(seen[name] for name in resid_names),
        past=() if cache is None else tuple((layer.keys, layer.values) for layer in cache.layers),
        logits=logits,
        activations={name: seen[name] for name in hook_names},
        as_tuple=seen["tuple"],
        parts=parts,
        masked=at,
    )


def rows_join(bridge: TransformerBridge) -> bool:
    """Returns whether blocks of this model can run for only some rows of a batch. Verified once for all models like it."""

    def prove() -> bool:
        batch = as_batch(made_up(bridge, 2, min(bridge.cfg.n_ctx, 8)))
        recording = _record(bridge, batch, (), Parts(columns=False, layers=True))
        last = torch.zeros_like(batch.prompt_mask)
        last[:, -1] = True
        layers = torch.tensor([0, bridge.cfg.n_layers - 1])

        def push(row: int) -> Any:
            def hook_fn(resid: Tensor, hook: Any) -> Tensor:
                return resid.index_put((torch.tensor([row]), torch.tensor([-1])), -resid[row, -1])

            return f"blocks.{int(layers[row])}.hook_in", hook_fn

        with hooked(bridge, [push(0), push(1)]):
            expected = bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)[last]
            try:
                with _joining(bridge, recording, 0, torch.arange(2), layers) as held:
                    found = run_cone(bridge, held, [], logits_at=last)
            except Exception:  # whatever an architecture raises where a block gets fewer rows than were announced
                return False
        return difference(found, expected) <= TOLERANCE[bridge.original_model.dtype]

    return proved(bridge, "rows of a run", prove)


def rows_that_fit(bridge: TransformerBridge, n_pos: int, start: int, memory_bytes: int) -> int:
    """Estimates how many rows of a cone from column `start` on fit in memory at a time; at least one."""
    cfg, cone = bridge.cfg, n_pos - start
    d_mlp = cfg.d_mlp or 4 * cfg.d_model
    # A block's activations, keys and values of all blocks twice (held, and in the cache), and one
    # line of logits.
    row = cone * (8 * cfg.d_model + 3 * d_mlp + 3 * cfg.n_heads * n_pos)
    row += 4 * cfg.n_layers * n_pos * cfg.n_heads * cfg.d_head + 3 * cfg.d_vocab
    return max(1, memory_bytes // (4 * row))
