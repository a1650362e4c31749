"""Base class of position rules, the batch information they may use, and how rules are combined.

A rule is a small frozen value whose `mask` is True at the tokens it picks. An index counts only the
prompt tokens of its own row, so padding on either side, ragged batches and short prompts need no
special case.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, final

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from reftlens.display import as_html


@final
@dataclass(frozen=True, eq=False)
class Prompts:
    """The information about a batch that a rule may use."""

    mask: Bool[Tensor, "batch pos"]
    """True for prompt tokens."""
    completion: Bool[Tensor, "batch pos"] | None = None
    """True for tokens that follow a prompt."""
    texts: tuple[str, ...] | None = None
    """The prompt texts."""
    offsets: Int[Tensor, "batch pos 2"] | None = None
    """First and one-past-last character of each prompt token in its text; equal for a token without text (BOS)."""

    @cached_property
    def place(self) -> Int[Tensor, "batch pos"]:
        """0-based index of each prompt token in its own prompt; undefined elsewhere."""
        # cached_property writes to __dict__, past the frozen dataclass.
        return self.mask.long().cumsum(dim=1) - 1

    @cached_property
    def length(self) -> Int[Tensor, "batch 1"]:
        """Number of prompt tokens in each row."""
        return self.mask.sum(dim=1, keepdim=True)


_SKETCHED = (6, 16)
"""Lengths of the prompts on which a notebook shows a rule."""


class Positions(ABC):
    """A rule that picks tokens of a prompt. Combine rules with `|` (union) and `-` (difference)."""

    @property
    def generated(self) -> bool:
        """Whether the rule also picks the tokens that a model generates."""
        return False

    @property
    def short(self) -> str:
        """A short label for tables and figures, such as `first 2`; the default is the `repr`."""
        return repr(self)

    @abstractmethod
    def pick(self, prompts: Prompts) -> Bool[Tensor, "batch pos"]:
        """Returns a mask that is True at the picked tokens.

        Args:
            prompts: the information about a batch that the rule may use.
        """

    @abstractmethod
    def spec(self) -> dict[str, object]:
        """Returns the rule as plain JSON values, which `from_spec` reads back."""

    def mask(self, prompts: Prompts | Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Returns the mask of edited tokens.

        Args:
            prompts: the prompts of a batch, or only the mask of its prompt tokens, which is enough
                for rules that do not read the text.

        Raises:
            ValueError: If a prompt lacks a token that the rule requires, or the rule reads a text
                that is not given.
        """
        return self.pick(prompts if isinstance(prompts, Prompts) else Prompts(prompts))

    def __or__(self, other: Positions) -> Positions:
        return Union(self, other) if isinstance(other, Positions) else NotImplemented

    def __sub__(self, other: Positions) -> Positions:
        return Difference(self, other) if isinstance(other, Positions) else NotImplemented

    def _repr_html_(self) -> str:
        """Shows which tokens the rule picks in a short and a long prompt, where rules may overlap or run out of tokens."""
        return as_html(f"{self!r}\n{self.sketch()}", pd.DataFrame)

    def sketch(self) -> str:
        """Which tokens the rule picks in a short and a long prompt, a line for each."""
        return "\n".join(f"{n} tokens: {self._sketch(n)}" for n in _SKETCHED)

    def _sketch(self, length: int) -> str:
        mask = torch.ones(1, length, dtype=torch.bool)
        try:
            picked = self.mask(Prompts(mask))[0].tolist()
        except ValueError as error:
            return str(error)
        return "".join("■" if edited else "□" for edited in picked) + " and each generated one" * self.generated


_JOINED = {"union": "+", "difference": "-"}


@dataclass(frozen=True)
class _Pair(Positions):
    """A combination of two rules."""

    left: Positions
    right: Positions
    symbol: ClassVar[str]
    rule: ClassVar[str]

    def spec(self) -> dict[str, object]:
        return {"rule": self.rule, "left": self.left.spec(), "right": self.right.spec()}

    @property
    def short(self) -> str:
        # Operators join from the left, so only a pair on the right needs brackets.
        right = f"({self.right.short})" if isinstance(self.right, _Pair) else self.right.short
        return f"{self.left.short} {_JOINED[self.rule]} {right}"

    def __repr__(self) -> str:
        right = f"({self.right!r})" if isinstance(self.right, _Pair) else repr(self.right)
        return f"{self.left!r} {self.symbol} {right}"


@final
@dataclass(frozen=True, repr=False)
class Union(_Pair):
    """Tokens that either rule picks."""

    symbol: ClassVar[str] = "|"
    rule: ClassVar[str] = "union"

    @property
    def generated(self) -> bool:
        return self.left.generated or self.right.generated

    def pick(self, prompts: Prompts) -> Bool[Tensor, "batch pos"]:
        return self.left.pick(prompts) | self.right.pick(prompts)


@final
@dataclass(frozen=True, repr=False)
class Difference(_Pair):
    """Tokens that the left rule picks and the right one does not."""

    symbol: ClassVar[str] = "-"
    rule: ClassVar[str] = "difference"

    @property
    def generated(self) -> bool:
        return self.left.generated and not self.right.generated

    def pick(self, prompts: Prompts) -> Bool[Tensor, "batch pos"]:
        return self.left.pick(prompts) & ~self.right.pick(prompts)
