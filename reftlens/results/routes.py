"""Results on how an edit's effect travels: through values or patterns of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.results.base import Result


@final
@dataclass(frozen=True, eq=False)
class Split:
    """An edit's effect on each example, edited minus base, and the parts of it that attention patterns decide."""

    whole: Float[Tensor, " example"]
    """The whole effect."""
    frozen: Float[Tensor, " example"]
    """The effect with every attention pattern held to the base run's: what passes by values, MLPs and the residual stream."""
    patterns: Float[Tensor, " example"]
    """The effect of the edited run's patterns in the base run, without the edit: what passes by patterns alone."""
    opened: Float[Tensor, "example layer head"]
    """What is added to `frozen` if this head alone computes its own pattern."""
    closed: Float[Tensor, "example layer head"]
    """What is lost from `whole` if this head alone has the base run's pattern."""

    @property
    def needs(self) -> Float[Tensor, " example"]:
        """What needs changed patterns: whole - frozen. It includes what changed patterns do to changed values."""
        return self.whole - self.frozen

    @property
    def jointly(self) -> Float[Tensor, " example"]:
        """whole - frozen - patterns: what needs changed patterns and changed values at once."""
        return self.needs - self.patterns


_PARTS = (
    ("whole effect", "whole"),
    ("patterns frozen", "frozen"),
    ("needs changed patterns", "needs"),
    ("changed patterns alone", "patterns"),
    ("patterns and values jointly", "jointly"),
)


@final
@dataclass(frozen=True, eq=False, repr=False)
class Channels(Result):
    """An edit's effect, split by whether it passes with attention patterns frozen to the base run's."""

    edit: Split
    control: Split
    """The same of the edit turned to random directions."""

    def headline(self) -> str:
        whole, frozen, needs, alone = (float(getattr(self.edit, part).mean()) for _, part in _PARTS[:4])
        shares = [float(getattr(self.control, part).mean()) for _, part in _PARTS[:2]]
        return (
            f"effect {whole:.3g}: {frozen:.3g} with attention patterns frozen, {needs:.3g} needs changed patterns "
            f"({alone:.3g} by patterns alone); {len(self.edit.whole)} examples; turned to random directions: effect "
            f"{shares[0]:.3g}, {shares[1]:.3g} with patterns frozen"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row for each part of the whole effect, then two for each head; values are means over examples."""
        both = (self.edit, self.control)
        lines = [(label, *(float(getattr(split, part).mean()) for split in both)) for label, part in _PARTS]
        for label, part in (("opened", "opened"), ("closed", "closed")):
            values, control = (getattr(split, part).mean(0) for split in both)
            lines += [
                (f"{layer}.{head} {label}", float(values[layer, head]), float(control[layer, head]))
                for layer, head in torch.cartesian_prod(*map(torch.arange, values.shape)).tolist()
            ]
        return pd.DataFrame(lines, columns=["part", "value", "control"])
