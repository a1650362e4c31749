"""Computes the effect of subsets of an edit's parts: v(S) = metric with the parts in S - metric of the base.

A part is a site, or a site at some of its tokens. Many sets of parts run as rows of one light cone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.sweep import TOKENS
from reftlens.analysis.metrics import Metric, require_pairs_of
from reftlens.bridge import each, is_main_process
from reftlens.cone.hold import boundary_of, run_cone
from reftlens.cone.recording import record, rows_that_fit
from reftlens.data import Batch
from reftlens.edit.hooks import Edit


@final
@dataclass(frozen=True, eq=False)
class Part:
    """A piece of an edit that can be left out."""

    site: int
    """Which of the edits it belongs to."""
    mask: Bool[Tensor, "batch pos"]
    """The tokens that it changes."""


def whole_sites(edits: Sequence[Edit]) -> list[Part]:
    """One part for each site."""
    return [Part(site, edit.mask) for site, edit in enumerate(edits)]


def site_columns(edits: Sequence[Edit]) -> list[Part]:
    """One part for each site and column that it edits in any example."""
    parts = []
    for site, edit in enumerate(edits):
        for column in edit.mask.any(0).nonzero().flatten().tolist():
            only = torch.zeros_like(edit.mask)
            only[:, column] = edit.mask[:, column]
            parts.append(Part(site, only))
    return parts


@final
class Coalitions:
    """Effects of sets of parts, from one recording of the base."""

    def __init__(
        self,
        bridge: TransformerBridge,
        batch: Batch,
        metric: Metric,
        *,
        memory_bytes: int = 1 << 30,
    ) -> None:
        """Runs the base once.

        Args:
            bridge: the base; causal.
            batch: prompts without completions.
            metric: of the logits after each prompt.
            memory_bytes: about what the activations of one run may take.
        """
        require_pairs_of(metric, len(batch))
        self.bridge, self.metric, self.memory_bytes = bridge, metric, memory_bytes
        self.base = record(bridge, batch)
        self.unedited = self._measure(self.base.logits, torch.arange(len(batch)))

    @torch.no_grad()
    def effects(
        self,
        edits: Sequence[Edit],
        parts: Sequence[Part],
        sets: Bool[Tensor, "set part"],
        *,
        progress: str = "",
    ) -> Float[Tensor, "set example"]:
        """Computes v of each set, in float64. The effect of the empty set is 0.

        Args:
            edits: of the batch, from `reft.edits(batch)`.
            parts: what they are made up of.
            sets: the parts that stay.
            progress: what the progress bar says; none if empty.
        """
        n_examples, n_pos = self.base.batch.tokens.shape
        boundary = torch.tensor([boundary_of(self.bridge, [edits[part.site].hook_name]) for part in parts])
        read = [replace(edits[part.site], lands=part.mask).read for part in parts]
        there = torch.stack([part.mask.any(1) for part in parts], dim=1).cpu()  # [example, part]
        first = torch.stack([mask.int().argmax(1) for mask in read], dim=1).cpu()
        acts = sets[:, None] & there  # [set, example, part]
        # A part that is left out, or has no token in this example, does not widen the cone.
        earliest = torch.where(acts, boundary, self.bridge.cfg.n_layers).amin(-1)
        start = torch.where(acts, first, n_pos).amin(-1)
        # A run begins where its earliest row does, so rows that begin alike should share one.
        rows = sorted(
            acts.any(-1).nonzero().tolist(), key=lambda row: (int(earliest[tuple(row)]), int(start[tuple(row)]))
        )
        groups = []
        while rows:
            n = self._together(n_pos, int(start[tuple(rows[0])]))
            groups.append(torch.tensor(rows[:n]).T)
            rows = rows[n:]

        def run(group: Int[Tensor, "2 n"]) -> Float[Tensor, " n"]:
            chosen, example = group
            begin = int(earliest[chosen, example].min()), int(start[chosen, example].min())
            return self._run(edits, parts, sets[chosen], example, *begin)

        out = torch.zeros(len(sets), n_examples, dtype=torch.float64)
        hidden = not (progress and is_main_process())
        with tqdm(total=sum(group.shape[1] for group in groups), desc=progress, unit="run", disable=hidden) as bar:
            for (chosen, example), found in zip(groups, each(self.bridge, run, groups), strict=True):
                out[chosen, example] = found
                bar.update(len(found))
        return out

    def _together(self, n_pos: int, start: int) -> int:
        """Rows of one run."""
        # As in `sweep`: on a CPU, runs of more tokens are not faster per token.
        fit = rows_that_fit(self.bridge, n_pos, start, self.memory_bytes)
        return min(fit, -(-TOKENS // (n_pos - start))) if self.base.logits.device.type == "cpu" else fit

    def _run(
        self,
        edits: Sequence[Edit],
        parts: Sequence[Part],
        sets: Bool[Tensor, "n part"],
        example: Int[Tensor, " n"],
        boundary: int,
        start: int,
    ) -> Float[Tensor, " n"]:
        held = self.base.cone(boundary, start, example)
        kept = []
        for site, edit in enumerate(edits):
            lands = torch.zeros_like(held.batch.prompt_mask)
            for number, part in enumerate(parts):
                if part.site == site:
                    lands |= part.mask[example] & sets[:, number, None].to(lands.device)
            if bool(lands.any()):
                # Only `lands` is cut: a change is still computed from the whole mask.
                kept.append(replace(edit, mask=edit.mask[example], lands=lands))
        last = held.batch.last_prompt_mask
        return self._measure(run_cone(self.bridge, held, kept, logits_at=last), example) - self.unedited[example]

    def _measure(self, logits: Float[Tensor, "n d_vocab"], example: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self.metric(logits, example.to(logits.device)).double().cpu()
