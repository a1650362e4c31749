"""Interchange training: finds the subspace in which a variable of a causal model is stored (distributed alignment search).

With s the activations of the source's run at the edited tokens, h those of the base, and R the rows
of the variable:

`Interchange` (DAS; Geiger et al. 2023, arXiv:2303.02536, eq. 2), with the label that the causal
model gives the base after the variable was set to its value in the source:
    -log p(label | base, h + R^T(Rs - Rh))
`InterchangeMatching` (CDAS; Bao et al. 2026, arXiv:2602.05234), which matches distributions and
needs no causal model:
    JS(p(. | base, swapped), p(. | source)) at the tokens of the source's answer, and the same with base and source exchanged

The edit is any of the interchange classes. The runs of base and source do not depend on R: the
base's part before the edit and the source's activations are computed once, and cached with the base
runs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from reftlens.cone.hold import Held, run_cone
from reftlens.cone.light_cone import last_block_of, run_blocks, whole
from reftlens.data import IGNORE, Batch, encode
from reftlens.data.counterfactual import Counterfactual
from reftlens.edit.hooks import Edit, Watch
from reftlens.edit.reft import Reft
from reftlens.interventions import SourceIntervention, SteeringVector
from reftlens.training.objectives.base import (
    Example,
    Examples,
    Objective,
    completion_logprobs,
    predictions,
    widened,
)

_TARGETS = -1.0
"""Marks the rows of `reference` that hold the target's log-probabilities; others are marked with the index of their site."""


class _Swapping(Objective):
    """Base class of losses under an interchange of named variables."""

    unit: ClassVar[str] = "nats per token"

    def __init__(self, variables: str | Sequence[str] = "variable") -> None:
        """Args: variables: the names of the variables that the examples swap.

        Raises:
            ValueError: If there are none, or a name is not an identifier.
        """
        super().__init__()
        self.variables = (variables,) if isinstance(variables, str) else tuple(variables)
        if not self.variables or not all(name.isidentifier() for name in self.variables):
            raise ValueError(f"variables must be names such as 'left', at least one, got {self.variables}")
        # A tuple keeps the edit from being registered as a part of the objective.
        self._bound: tuple[Reft, ...] = ()

    def extra_repr(self) -> str:
        return f"variables={'+'.join(self.variables)}"

    def bind(self, reft: Reft | None) -> None:
        if reft is None:
            raise ValueError(f"{type(self).__name__} trains an interchange, but there is no edit: pass a Reft")
        require_interchanges(reft, self.variables)
        self._bound = (reft,)

    def read(self, examples: Examples) -> list[Example]:
        names = list(self.fields)

        def fitted(example: object) -> object:
            if isinstance(example, Mapping):
                example = tuple(example[name] for name in names if name in example)
            # A `Counterfactual` says more than is trained on.
            if isinstance(example, Counterfactual):
                example = tuple(example)[: len(names)]
            if isinstance(example, tuple | list) and len(example) == 3 and len(self.variables) == 1:
                example = (*example, self.variables[0])
            return example

        found = super().read([fitted(example) for example in examples])
        for row, example in enumerate(found):
            unknown = sorted(set(example[3].split("+")) - set(self.variables))
            if unknown:
                raise ValueError(
                    f"example {row} swaps {', '.join(unknown)}, but the objective is for {', '.join(self.variables)}: pass "
                    "variables=[...] with all of them"
                )
        return found

    def weights(self, batch: Batch) -> Int[Tensor, " examples"]:
        counts = (batch.labels != IGNORE).sum(dim=1)
        return counts.view(-1, self.rows_of_an_example).sum(dim=1)

    rows_of_an_example: ClassVar[int] = 1

    @abstractmethod
    def sources(self, bridge: TransformerBridge, example: Example) -> Batch:
        """Encodes the source of each row that `encode` gives."""

    @torch.no_grad()
    def reference(self, bridge: TransformerBridge, held: Held, example: Example) -> Float[Tensor, "n columns"]:
        """Runs the sources. Each result row is: its site, its variables as bits, and an activation or log-probabilities."""
        (reft,) = self._bound
        batch = self.sources(bridge, example)
        found, logits = source_run(bridge, reft, batch, logits=self.needs_targets)
        edits = reft.edits(held.batch)
        for edit, (_, rows) in zip(edits, found, strict=True):
            there, here = rows.bincount(minlength=len(batch)), edit.mask.sum(dim=1).to(rows.device)
            if there.tolist() != here.tolist():
                raise ValueError(
                    f"{edit.hook_name} edits {here.tolist()} tokens of the base {example[0]!r}, but {there.tolist()} of the source "
                    f"{example[1]!r}: choose positions that select equally many tokens of both"
                )
        # The base-run store keeps tensors only, so names become the bits of a number.
        bits = sum(1 << self.variables.index(name) for name in example[3].split("+"))
        parts = [(float(place), tokens) for place, (tokens, _) in enumerate(found)]
        if logits is not None:
            parts.append((_TARGETS, logits.log_softmax(dim=-1)))
        return _packed(parts, float(bits))

    needs_targets: ClassVar[bool] = False

    @contextmanager
    def taken(self, reference: Tensor, edits: Sequence[Edit]) -> Iterator[None]:
        """Context in which the edits have the activations of `reference` as their sources."""
        interventions = [edit.intervention for edit in edits]
        try:
            for place, intervention in enumerate(interventions):
                assert isinstance(intervention, SourceIntervention), "bind() required it"
                # Rows of a shorter width were padded by `_packed`.
                rows = reference[reference[:, 0] == place]
                names = [self._names(int(bits)) for bits in rows[:, 1].tolist()]
                intervention.take(rows[:, 2 : 2 + intervention.d_model], names)
            yield
        finally:
            for intervention in interventions:
                if isinstance(intervention, SourceIntervention):
                    intervention.take(None)

    def _names(self, bits: int) -> str:
        return "+".join(name for place, name in enumerate(self.variables) if bits >> place & 1)


@final
class Interchange(_Swapping):
    """-log p(label | base with the variable's subspace from the source), averaged over label tokens.

    An example is (base, source, label, variable), such as a `data.Counterfactual`; with one
    variable, its name may be left out. "left+right" swaps two variables together.
    """

    fields: ClassVar[dict[str, type]] = {"base": str, "source": str, "label": str, "variable": str}

    def encode(self, bridge: TransformerBridge, example: Example) -> Batch:
        base, _, label, _ = example
        return encode(bridge, [base], [label])

    def sources(self, bridge: TransformerBridge, example: Example) -> Batch:
        return encode(bridge, [example[1]])

    def losses(
        self, bridge: TransformerBridge, held: Held, edits: Sequence[Edit], reference: Tensor | None
    ) -> Float[Tensor, " examples"]:
        assert reference is not None, "the trainer passes what reference() gave"
        with self.taken(reference, edits):
            logits = run_cone(bridge, held, edits, logits_at=predictions(held.batch))
        return -completion_logprobs(logits, held.batch)


@final
class InterchangeMatching(_Swapping):
    """Jensen-Shannon divergence of the swapped base from the source and of the swapped source from the base.

    An example is (base, source, label, variable, base_label), where the label must be the source's
    own answer. The distributions are compared at the tokens that predict the answer, and averaged
    over these and both directions. Each direction compares the answer of the run that gave the
    activations, so both prompts are continued by the same tokens.

    This agrees with the loss and the data of the authors' code (`cdas_model.py` and `data_utils.py`
    of github.com/colored-dye/concept_das, commit 993041d): both directions, the same answer after
    both prompts, and a mean over the answer tokens of a batch. The paper itself was not read. As
    reviews of it quote the objective, it averages over each answer and adds the directions: the
    same up to a factor 2 for answers of equal length. CDAS trains rank 1, reads one token of the
    source, and clamps at inference; none of this is a part of the loss.
    """

    fields: ClassVar[dict[str, type]] = {
        "base": str,
        "source": str,
        "label": str,
        "variable": str,
        "base_label": str,
    }
    rows_of_an_example = 2
    needs_targets = True

    def encode(self, bridge: TransformerBridge, example: Example) -> Batch:
        base, source, label, _, base_label = example
        return encode(bridge, [base, source], [label, base_label])

    def sources(self, bridge: TransformerBridge, example: Example) -> Batch:
        base, source, label, _, base_label = example
        batch = encode(bridge, [source, base], [label, base_label])
        counts = [(one.labels != IGNORE).sum(dim=1).tolist() for one in (batch, self.encode(bridge, example))]
        if counts[0] != counts[1]:
            raise ValueError(
                f"{label!r} and {base_label!r} must have as many tokens after {base!r} as after {source!r}, got {counts[1]} and "
                f"{counts[0]}: end both prompts alike"
            )
        return batch

    def losses(
        self, bridge: TransformerBridge, held: Held, edits: Sequence[Edit], reference: Tensor | None
    ) -> Float[Tensor, " examples"]:
        assert reference is not None, "the trainer passes what reference() gave"
        where = predictions(held.batch)
        with self.taken(reference, edits):
            logits = widened(run_cone(bridge, held, edits, logits_at=where))
        wanted = reference[reference[:, 0] == _TARGETS][:, 2 : 2 + logits.shape[-1]]
        costs = jensen_shannon(logits.log_softmax(dim=-1), wanted.to(logits))
        # Rows 2 i and 2 i + 1 are the base and the source of example i.
        examples = where.nonzero()[:, 0].to(costs.device) // 2
        return torch.zeros(len(where) // 2, dtype=costs.dtype, device=costs.device).index_add(0, examples, costs)


def jensen_shannon(p: Float[Tensor, "n d_vocab"], q: Float[Tensor, "n d_vocab"]) -> Float[Tensor, " n"]:
    """Computes (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, in nats: between 0 and log 2.

    Args:
        p: log-probabilities.
        q: log-probabilities.
    """
    m = torch.logsumexp(torch.stack([p, q]), dim=0) - torch.tensor(2.0).log()
    return ((p.exp() * (p - m)).sum(dim=-1) + (q.exp() * (q - m)).sum(dim=-1)) / 2


def require_interchanges(reft: Reft, variables: Sequence[str]) -> None:
    """Raises if an edit cannot swap these variables between runs.

    Args:
        reft: the edit.
        variables: names.

    Raises:
        ValueError: If a site is not edited by an interchange of its own, or an interchange has no
            part for a variable.
    """
    seen: set[int] = set()
    for site, intervention in reft:
        if not isinstance(intervention, SourceIntervention):
            raise ValueError(
                f"{site.name} must be edited by an interchange, such as rl.Interchange, got {type(intervention).__name__}"
            )
        if id(intervention) in seen:
            raise ValueError(f"{site.name} shares its interchange with another site: give each site its own")
        seen.add(id(intervention))
        missing = [name for name in variables if name not in intervention.parts]
        if (missing and intervention.parts) or (len(variables) > 1 and not intervention.parts):
            has = ", ".join(intervention.parts) or "one variable without a name"
            raise ValueError(
                f"{site.name} must have a part for each of {', '.join(variables)}, but has {has}: use "
                f"rl.SplitInterchange(d_model, {{{', '.join(f'{name!r}: 2' for name in variables)}}})"
            )


@torch.no_grad()
def source_run(
    bridge: TransformerBridge, reft: Reft, batch: Batch, *, logits: bool = False
) -> tuple[list[tuple[Float[Tensor, "tokens d_model"], Int[Tensor, " tokens"]]], Float[Tensor, "n d_vocab"] | None]:
    """Runs the unedited base once, and returns the activations at an edit's sites.

    Args:
        bridge: the base.
        reft: the edit. Only its sites matter.
        batch: the sources.
        logits: also return the logits at `predictions(batch)`.

    Returns:
        For each site, the activations of its tokens in row order and the row of each; and the
        logits, or None.
    """
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(place: int) -> Watch:
        return lambda tokens, example: seen.update({place: (widened(tokens.detach()), example)})

    # A steering vector of zeros changes nothing, and is watched at the same tokens, heads and
    # points as the edit.
    edits = [
        replace(edit, intervention=SteeringVector(edit.intervention.d_model).to(bridge.cfg.device), watch=keep(place))
        for place, edit in enumerate(reft.edits(batch))
    ]
    until = last_block_of([edit.hook_name for edit in edits])
    if logits or until is None:
        said = run_cone(bridge, whole(batch), edits, logits_at=predictions(batch))
        return [seen[place] for place in range(len(edits))], widened(said) if logits else None
    run_blocks(bridge, whole(batch), edits, until=until)
    return [seen[place] for place in range(len(edits))], None


def _packed(parts: Sequence[tuple[float, Tensor]], bits: float) -> Float[Tensor, "n columns"]:
    """Stacks rows of different widths behind two columns, their mark and the example's variables."""
    width = max(values.shape[1] for _, values in parts)
    return torch.cat(
        [
            torch.cat(
                [
                    values.new_tensor([[mark, bits]]).expand(len(values), 2),
                    nn.functional.pad(values, (0, width - values.shape[1])),
                ],
                dim=1,
            )
            for mark, values in parts
        ]
    )
