"""The loss of one training step: the objective's loss of each example, under the edit, plus the edit's L1 penalty."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from reftlens.cone.hold import Held
from reftlens.edit.hooks import Edit, Watch
from reftlens.training.base_runs import BaseRuns


def require_frozen(bridge: TransformerBridge) -> None:
    """Raises if training an edit would also train the base.

    Raises:
        ValueError: If parameters of the base require gradients.
    """
    trainable = [name for name, parameter in bridge.named_parameters() if parameter.requires_grad]
    if trainable:
        raise ValueError(
            f"the base is not frozen: {len(trainable)} of its tensors require gradients ({trainable[0]}, ...) and would be "
            "trained with the edit. Load the base with rl.load_bridge, or call bridge.requires_grad_(False) after loading "
            "and after enable_compatibility_mode; to train the base as well, pass train_base=True"
        )


@final
class EditLoss(nn.Module):
    """A module that holds the edit and its objective, and returns the loss of each example."""

    def __init__(self, runs: BaseRuns, *, dropout: float, l1: float, train_base: bool = False) -> None:
        """Args: dropout: of edited states. l1: factor of the edits' L1 terms. Both apply in train mode only.

        Raises:
            ValueError: If l1 is not 0 and an edit has no L1 term, or the base is not frozen and
                `train_base` is False.
        """
        super().__init__()
        if not train_base:
            require_frozen(runs.bridge)
        self.reft, self.objective = runs.reft, runs.objective
        # Registered here only because Trainer optimises the parameters of its module.
        self.base = nn.ParameterList(p for p in runs.bridge.parameters() if p.requires_grad)
        self.dropout, self.l1 = dropout, l1
        if l1:
            device = runs.bridge.cfg.device
            for _, intervention in runs.reft or ():
                # No tokens: a class without an L1 term raises here instead of in the first step.
                nothing = torch.zeros(0, intervention.d_model, device=device)
                intervention.l1(nothing, torch.zeros(0, dtype=torch.long, device=device), n_examples=0)
        # A tuple keeps the base from being registered as a submodule.
        self._runs = (runs,)

    def forward(self, rows: Tensor) -> Tensor:
        (runs,) = self._runs
        held, reference = runs.batch(rows.tolist())
        edits = runs.edits(held.batch)
        if not self.training:
            return self.objective.losses(runs.bridge, held, edits, reference)
        penalties: list[Tensor] = []
        watched = [replace(edit, dropout=self.dropout, watch=self._penalise(edit, held, penalties)) for edit in edits]
        losses = self.objective.losses(runs.bridge, held, watched, reference)
        if not penalties:
            return losses
        # An objective may run the cone more than once (RePS). The penalty is the mean over these
        # runs.
        per_row = torch.stack([penalty.to(losses) for penalty in penalties]).sum(dim=0) * len(edits) / len(penalties)
        # [rows] -> [examples, rows of each]: a preference has two.
        per_example = per_row.view(len(losses), -1).mean(dim=1)
        # The trainer divides by the weights, and the penalty must not shrink with long completions.
        return losses + self.l1 * self.objective.weights(held.batch).to(losses) * per_example

    def _penalise(self, edit: Edit, held: Held, penalties: list[Tensor]) -> Watch | None:
        if not self.l1:
            return None
        n_rows = len(held.batch)
        return lambda tokens, example: penalties.append(edit.intervention.l1(tokens, example, n_rows))

    @torch.no_grad()
    def first_site_not_finite(self, rows: Tensor) -> str:
        """Adds edits one at a time and returns the site at which the loss of these examples stops being finite."""
        (runs,) = self._runs
        held, reference = runs.batch(rows.tolist())
        edits = runs.edits(held.batch)
        for count in range(len(edits) + 1):
            try:
                losses = self.objective.losses(runs.bridge, held, edits[:count], reference)
            # R refuses NaN by itself.
            except ValueError:
                break
            if not bool(losses.isfinite().all()):
                break
        return "the base model itself, without any edit" if count == 0 else edits[count - 1].hook_name
