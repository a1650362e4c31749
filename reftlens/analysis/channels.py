"""Through which channel does an edit act? Splits its effect by whether attention patterns may change (QK) or not (OV, MLPs).

Let m(edit; P) be the metric of a run with the edit and with attention patterns P, where P = "own"
leaves every head its own:

    whole    = m(edit; own)             - m(no edit; own)
    frozen   = m(edit; the base run's)  - m(no edit; own)      values, MLPs and the residual stream change, patterns do not
    needs    = whole - frozen                                  = m(edit; own) - m(edit; the base run's)
    patterns = m(no edit; the edited run's) - m(no edit; own)  only patterns change, and what follows from them

So `needs` includes all that changed patterns do: moving unchanged values, moving changed values,
and what later layers make of both. `patterns` has only the first of these as its cause, and needs -
patterns is what takes both at once. For each head, `opened` is what its own pattern adds where all
others are frozen, and `closed` is what is lost where it alone is frozen. A head that is opened
computes its pattern from a stream in which all earlier patterns are frozen. All are exact runs of
the edit's light cone.

Not evidence that values are unimportant where `needs` is large: a pattern often changes because of
what earlier heads moved, and it needs values to act on. Parts of heads do not sum to `needs`,
because a pattern acts on what others changed. An edited run with frozen patterns is a combination
that the model never computes. The control is the same split of the edit turned to random
directions, with changes of the same norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.controls.turned import turned
from reftlens.analysis.engine.sweep import TOKENS
from reftlens.analysis.metrics import Metric
from reftlens.analysis.patch import metric_of, require_pairs
from reftlens.bridge import each, hooked, is_main_process, pattern_hooks
from reftlens.cone.hold import boundary_of, run_cone
from reftlens.cone.recording import Recording, record, rows_of, rows_that_fit
from reftlens.data import Batch, Given, as_batch
from reftlens.edit.hooks import Edit
from reftlens.edit.reft import Reft
from reftlens.results import Channels
from reftlens.results.routes import Split

Patterns = Sequence[Float[Tensor, "batch head query key"]]
"""Attention patterns of each block, in one run."""


def channels(
    bridge: TransformerBridge,
    reft: Reft,
    prompts: Given,
    metric: Metric,
    *,
    seed: int = 0,
    memory_bytes: int = 1 << 30,
    progress: bool = True,
) -> Channels:
    """Splits the effect into what passes with patterns frozen and what needs changed ones, in total and for each head.

    For each prompt, two cones are run for each head from the first edited block on, two for the
    totals, and as many for the control.

    Args:
        bridge: the base; causal.
        reft: the edit.
        prompts: texts, conversations or one batch, without completions.
        metric: of the logits after each prompt.
        seed: seed of the control's random directions.
        memory_bytes: approximate limit for the activations of one run.
        progress: show a progress bar.

    Raises:
        ValueError: If attention patterns of this model cannot be held, or prompts have completions.
    """
    batch = as_batch(bridge, prompts)
    require_pairs(batch)
    names = pattern_hooks(bridge)
    base, patterns = _recorded(bridge, batch, names)
    edits = reft.edits(batch)
    first = torch.stack([edit.read for edit in edits]).any(0).any(0)
    boundary = boundary_of(bridge, [edit.hook_name for edit in edits])
    runs = _Runs(bridge, base, metric, names, boundary, int(first.int().argmax()), memory_bytes)
    splits = []
    for source, bar in ((reft, "channels"), (turned(reft, seed=seed), "control")):
        with torch.no_grad(), source.hooks(bridge, batch):
            edited, moved = _recorded(bridge, batch, names)
        whole = metric_of(metric, edited)
        splits.append(_split(runs, source.edits(batch), patterns, moved, whole, bar if progress else ""))
    return Channels(*splits)


def _recorded(bridge: TransformerBridge, batch: Batch, names: Sequence[str]) -> tuple[Recording, Patterns]:
    """Records a run and its patterns, under whatever is attached."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        # Not by `record`, which refuses points that carry no direction for each token.
        return lambda pattern, hook: seen.update({name: pattern.clone()})

    with hooked(bridge, [(name, keep(name)) for name in names]):
        recording = record(bridge, batch)
    return recording, [seen[name] for name in names]


def _split(
    runs: _Runs, edits: Sequence[Edit], base: Patterns, moved: Patterns, edited: Float[Tensor, " pair"], progress: str
) -> Split:
    unedited, heads = metric_of(runs.metric, runs.base), torch.zeros(len(base), base[0].shape[1], dtype=torch.bool)
    # Patterns before the first edited block are the same in all runs, so freezing one of them does
    # nothing.
    skipped = (runs.boundary + 1) * heads.shape[1]
    one = torch.eye(heads.numel(), dtype=torch.bool)[skipped:].unflatten(1, heads.shape)
    values = runs.values(torch.cat([~heads[None], ~one, one]), base, edits, progress=progress)
    frozen, (opened, closed) = values[:, 0], values[:, 1:].chunk(2, dim=1)

    def by_head(changes: Float[Tensor, "pair n"]) -> Float[Tensor, "pair layer head"]:
        return pad(changes, (skipped, 0)).unflatten(1, heads.shape)

    return Split(
        whole=edited - unedited,
        frozen=frozen - unedited,
        patterns=runs.values(~heads[None], moved, ())[:, 0] - unedited,
        opened=by_head(opened - frozen[:, None]),
        closed=by_head(edited[:, None] - closed),
    )


@final
@dataclass(frozen=True, eq=False)
class _Runs:
    """Runs of one batch with some heads' patterns held."""

    bridge: TransformerBridge
    base: Recording
    metric: Metric
    names: Sequence[str]
    boundary: int
    """The last block that no edit changes."""
    start: int
    """The first column that an edit changes."""
    memory_bytes: int

    @torch.no_grad()
    def values(
        self, held: Bool[Tensor, "variant layer head"], patterns: Patterns, edits: Sequence[Edit], *, progress: str = ""
    ) -> Float[Tensor, "pair variant"]:
        """Computes the metric of every pair with the patterns of these heads held.

        Args:
            held: the heads, for each variant.
            patterns: what they are held to.
            edits: of the batch.
            progress: what the progress bar says; none if empty.
        """
        n_pairs, width = self.base.batch.tokens.shape
        rows = torch.cartesian_prod(torch.arange(len(held)), torch.arange(n_pairs))
        count = rows_that_fit(self.bridge, width, self.start, self.memory_bytes)
        if self.base.logits.device.type == "cpu":
            # As in `sweep`: on a CPU, runs of more tokens are not faster per token.
            count = min(count, -(-TOKENS // (width - self.start)))
        groups = rows.split(count)

        def run(group: Int[Tensor, "n 2"]) -> Float[Tensor, " n"]:
            variant, pair = group.T
            return self._run(held[variant], pair, patterns, edits)

        found = []
        hidden = not (progress and is_main_process())
        with tqdm(total=len(rows), desc=progress, unit="run", disable=hidden) as bar:
            for values in each(self.bridge, run, groups):
                found.append(values)
                bar.update(len(values))
        return torch.cat(found).view(len(held), n_pairs).T

    def _run(
        self, held: Bool[Tensor, "n layer head"], pair: Int[Tensor, " n"], patterns: Patterns, edits: Sequence[Edit]
    ) -> Float[Tensor, " n"]:
        cone = self.base.cone(self.boundary, self.start, pair)

        def holding(layer: int) -> Any:
            def hook_fn(pattern: Tensor, hook: Any) -> Tensor:
                # In a cone, queries begin at its first column, and keys at the first of the prompt.
                of_rows = rows_of(patterns[layer], pair)[:, :, cone.start :]
                return torch.where(held[:, layer, :, None, None].to(pattern.device), of_rows, pattern)

            return hook_fn

        hooks = [(name, holding(layer)) for layer, name in enumerate(self.names) if layer > cone.boundary]
        on = [replace(edit, mask=rows_of(edit.mask, pair)) for edit in edits]
        with hooked(self.bridge, hooks):
            logits = run_cone(self.bridge, cone, on, logits_at=cone.batch.last_prompt_mask)
        return self.metric(logits, pair.to(logits.device)).float().cpu()
