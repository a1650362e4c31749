"""Runs counterfactual pairs under one interchange after another. Base and source runs are computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.cone.hold import hold, run_cone
from reftlens.data import IGNORE, encode
from reftlens.data.counterfactual import Counterfactual
from reftlens.edit.reft import Reft
from reftlens.interventions import Interchange, Intervention, SourceIntervention, SplitInterchange
from reftlens.training.objectives.base import predictions
from reftlens.training.objectives.interchange import require_interchanges, source_run

Among = Literal["all tokens", "labels"]


@final
class SwapRuns:
    """The answers of some pairs under any interchanges at the sites of one edit."""

    def __init__(
        self,
        bridge: TransformerBridge,
        reft: Reft,
        pairs: Sequence[Counterfactual],
        *,
        among: Among = "all tokens",
        batch_size: int = 64,
    ) -> None:
        """Runs bases and sources once.

        Args:
            bridge: the base.
            reft: interchanges. Only their sites matter.
            pairs: the pairs.
            among: the tokens that the model chooses from: all, or only those that occur in labels
                of these pairs.
            batch_size: pairs in one forward pass.

        Raises:
            ValueError: If the edit cannot swap these variables, or a base and its source have
                different numbers of edited tokens.
        """
        require_interchanges(reft, sorted({name for pair in pairs for name in pair.variable.split("+")}))
        self.bridge, self.pairs = bridge, pairs
        self.parts = []
        for start in range(0, len(pairs), batch_size):
            some = pairs[start : start + batch_size]
            batch = encode(bridge, [pair.base for pair in some], [pair.label for pair in some])
            edits = reft.edits(batch)
            held = hold(bridge, batch, edits, wanted=predictions(batch))
            sources, _ = source_run(bridge, reft, encode(bridge, [pair.source for pair in some]))
            for edit, (_, rows) in zip(edits, sources, strict=True):
                if not torch.equal(rows.bincount(minlength=len(some)).cpu(), edit.mask.sum(dim=1).cpu()):
                    raise ValueError(
                        f"{edit.hook_name} must edit as many tokens of each base as of its source: choose other positions"
                    )
            self.parts.append((some, held, sources))
        labels = torch.cat([held.batch.labels[held.batch.labels != IGNORE] for _, held, _ in self.parts])
        self.allowed = labels.unique() if among == "labels" else None

    @torch.no_grad()
    def right(self, reft: Reft | None) -> Float[Tensor, " pair"]:
        """Returns 1 for each pair whose label is what the model says under these interchanges, token by token.

        Args:
            reft: interchanges at the same sites; None swaps nothing.
        """
        found = []
        for some, held, sources in self.parts:
            edits = [] if reft is None else reft.edits(held.batch)
            # Not strict: without an edit, nothing is swapped.
            for edit, (tokens, rows) in zip(edits, sources, strict=False):
                assert isinstance(edit.intervention, SourceIntervention), "the constructor required it"
                edit.intervention.take(tokens, [some[row].variable for row in rows.tolist()])
            where = predictions(held.batch)
            logits = run_cone(self.bridge, held, edits, logits_at=where)
            said = (
                logits.argmax(dim=-1) if self.allowed is None else self.allowed[logits[:, self.allowed].argmax(dim=-1)]
            )
            for edit in edits:
                if isinstance(edit.intervention, SourceIntervention):
                    # The source belongs to this batch, not to the edit.
                    edit.intervention.take(None)
            wrong = said != held.batch.labels[held.batch.labels != IGNORE].to(said.device)
            misses = where.nonzero()[:, 0].to(said.device)[wrong].bincount(minlength=len(some))
            found.append((misses == 0).float().cpu())
        return torch.cat(found)


def widths(reft: Reft) -> dict[str, int]:
    """Returns the dimensions of each variable that an edit swaps, summed over sites."""
    total: dict[str, int] = {}
    for _, intervention in reft:
        assert isinstance(intervention, SourceIntervention), "only interchanges have a width"
        for name, width in intervention.widths().items():
            total[name] = total.get(name, 0) + width
    return total


def whole_activation(reft: Reft) -> Reft:
    """Makes interchanges of the whole activation at the sites of an edit, whatever the variable."""

    def whole(intervention: Intervention) -> Intervention:
        return Interchange.along(torch.eye(intervention.d_model))

    return _replaced(reft, whole)


def random_subspaces(reft: Reft, *, seed: int) -> Reft:
    """Makes interchanges of random subspaces that are as wide as those that an edit swaps, at least one dimension each."""

    def drawn(intervention: Intervention) -> Intervention:
        assert isinstance(intervention, SourceIntervention)
        sizes = {name: max(1, width) for name, width in intervention.widths().items()}
        if intervention.parts:
            return SplitInterchange(intervention.d_model, sizes)
        return Interchange(intervention.d_model, sum(sizes.values()))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _replaced(reft, drawn)


def _replaced(reft: Reft, made: Callable[[Intervention], Intervention]) -> Reft:
    pairs = [(site, made(intervention)) for site, intervention in reft]
    device = next(iter(reft.parameters())).device
    return Reft(pairs, names=reft.names).to(device)
