"""At which layers and positions does a trained edit act? Applies the edit at one cell only, or everywhere except one cell.

Effect = mean over prompts of a metric, edited minus base; the metric may be the logit of the new
answer minus that of the old one. A cell's value is its effect alone, or the effect lost without it,
as a fraction of the whole effect. The control is the same with changes of the same norm in random
directions. Cells need not sum to one: edits interact, and later ones can substitute for earlier
ones. If the whole effect is small compared with single cells (they cancel) or with its spread over
prompts, fractions are meaningless, and the absolute effects are returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.controls.turned import Turned
from reftlens.analysis.engine.coalitions import Coalitions, Part, site_columns
from reftlens.analysis.metrics import Metric, unit_of
from reftlens.analysis.tokens import require_aligned, starred
from reftlens.data import Prompt, as_prompts, as_texts, encode, str_tokens
from reftlens.edit.hooks import Edit
from reftlens.edit.reft import Reft
from reftlens.results import TokenMap


def effect_map(
    bridge: TransformerBridge,
    reft: Reft,
    prompts: Iterable[Prompt],
    metric: Metric,
    *,
    subjects: Iterable[str] | None = None,
    leave_out: bool = False,
    n_control: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> TokenMap:
    """Computes the effect of each (site, position) of a trained edit alone, or the effect lost without it.

    Args:
        bridge: the base.
        reft: the edit.
        prompts: prompts with the same number of tokens, so that positions can be compared.
        metric: of the logits after each prompt, such as `logit_difference_of` the new answer and
            the old one.
        subjects: a part of each prompt, starred in plots; optional.
        leave_out: run the edit without each cell instead of each cell alone.
        n_control: random-direction controls to average over; at least one.
        seed: seed of the control.
        progress: show a progress bar.

    Returns:
        The map; NaN where a site does not edit.

    Raises:
        ValueError: If n_control is below 1, prompts differ in length, or the edit has no effect to
            attribute.
    """
    if n_control < 1:
        raise ValueError(f"n_control must be at least 1, got {n_control}: the map is compared with its control")
    prompts = as_prompts(prompts)
    subjects = None if subjects is None else as_texts(subjects, "subjects", count=len(prompts))
    batch = encode(bridge, prompts)
    require_aligned(batch)
    runs = Coalitions(bridge, batch, metric)
    edits = reft.edits(batch)
    cells = site_columns(edits)
    kept = torch.eye(len(cells), dtype=torch.bool)
    # Row 0 is the whole edit; then a row for each cell.
    sets = torch.cat([torch.ones_like(kept[:1]), ~kept if leave_out else kept])

    def parts(of: Sequence[Edit], doing: str) -> tuple[Float[Tensor, " prompt"], Float[Tensor, "cell prompt"]]:
        """Computes the effect of all cells on each prompt, and the effect of each cell on it."""
        effects = runs.effects(of, cells, sets, progress=doing if progress else "")
        return effects[0], effects[0] - effects[1:] if leave_out else effects[1:]

    by_prompt, measured = parts(edits, "locating the effect")
    generator = torch.Generator().manual_seed(seed)
    # One generator for all draws, or each would turn to the same directions.
    turned = [[replace(e, intervention=Turned(e.intervention, generator)) for e in edits] for _ in range(n_control)]
    scale, beside = _scale(by_prompt, float(measured.mean(1).abs().max()), unit_of(metric))
    drawn = torch.stack([parts(one, "control")[1] for one in turned]).mean(0)
    shape = (len(prompts), len(edits), batch.tokens.shape[1])
    # The control is divided by the edit's effect too, so that both maps have one unit.
    each, each_control = (_on_map(part / scale, cells, shape) for part in (measured, drawn))
    return TokenMap(
        values=each.mean(0),
        control=each_control.mean(0),
        rows=reft.site_names,
        tokens=str_tokens(bridge, batch.tokens[0]),
        starred=starred(bridge, prompts[0], subjects),
        quantity=("lost without this cell" if leave_out else "effect of this cell alone") + beside,
        control_name=f"the same change turned to random directions, mean of {n_control}",
        n_prompts=len(prompts),
        each=each,
        each_control=each_control,
        prompts=tuple(str_tokens(bridge, row) for row in batch.tokens),
    )


def _on_map(
    values: Float[Tensor, "cell prompt"], cells: Sequence[Part], shape: tuple[int, int, int]
) -> Float[Tensor, "prompt site pos"]:
    """Puts each cell's value where the cell is; NaN elsewhere."""
    on_map = torch.full(shape, torch.nan)
    row, column = torch.tensor([(cell.site, int(cell.mask.any(0).int().argmax())) for cell in cells]).T
    on_map[:, row, column] = rearrange(values, "cell prompt -> prompt cell").float()
    return on_map


def _scale(by_prompt: Float[Tensor, " prompt"], largest: float, unit: str) -> tuple[float, str]:
    """Returns what cells are divided by, the whole effect or 1, and how the quantity's name says so."""
    whole = float(by_prompt.mean())
    if max(abs(whole), largest) < 1e-6:
        raise ValueError(
            "the edit does not change this metric, so there is no effect to locate: choose another metric or other prompts"
        )
    if small := _why_small(by_prompt, largest):
        return 1.0, f", in {unit or 'units of the metric'}: {small}"
    return whole, f" / effect of the whole edit ({whole:+.2f}{unit and f' {unit}'})"


def _why_small(by_prompt: Float[Tensor, " prompt"], largest: float) -> str:
    """Explains why the whole effect is too small to divide by; empty if it is not."""
    whole, spread = float(by_prompt.mean()), float(by_prompt.std()) if len(by_prompt) > 1 else 0.0
    if largest > 2 * abs(whole):
        return f"the whole edit's effect ({whole:+.2f}) is small beside that of single cells (up to {largest:.2f})"
    if spread > abs(whole):
        return f"the whole edit's effect ({whole:+.2f}) is small beside its spread over prompts (sd {spread:.2f})"
    return ""
