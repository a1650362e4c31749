"""Result on how much of a finetuned model a small edit reproduces (see `analysis.explain_finetune`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import final

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from reftlens.results.base import Result

FOUND = "the edit found"
"""Name of the edit that the search ended with, in results."""
RESIDUAL = "resid_post"


@final
@dataclass(frozen=True, eq=False, repr=False)
class Explained(Result):
    """The share of KL(finetuned || base) that an edit of the base takes away, token by token."""

    name: str
    """The edit: the one found, a control, or the smallest edit at one site."""
    prompts: str
    """The prompts: "trained on", "held out" or "far"."""
    base: Float[Tensor, " token"]
    """KL(finetuned || base) in nats, summed over prompts: first of the token after the prompt, then of each further one."""
    left: Float[Tensor, " token"]
    """KL(finetuned || edited), summed in the same way."""
    n: Float[Tensor, " token"]
    """Number of prompts that have this token."""
    floor: float
    """Mean nats of `base` below which a share says nothing, because both sums are then rounding and chance."""

    @property
    def share(self) -> float:
        """1 - sum KL(finetuned || edited) / sum KL(finetuned || base) over all tokens; NaN below the floor."""
        base, left, n = (float(part.sum()) for part in (self.base, self.left, self.n))
        return 1 - left / base if n and base / n >= self.floor else float("nan")

    def by_token(self) -> Float[Tensor, " token"]:
        """Returns the share at each token; NaN below the floor."""
        return (1 - self.left / self.base).where(self.base >= self.floor * self.n, float("nan"))

    def headline(self) -> str:
        base, left, n = (float(part.sum()) for part in (self.base, self.left, self.n))
        return (
            f"{self.name}, {self.prompts}: explains {_percent(self.share)} of the finetuned model's outputs "
            f"(KL {base / max(n, 1):.3g} nats to the base, {left / max(n, 1):.3g} to the edit, {n:.0f} tokens)"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns the result as one row."""
        base, left, n = (float(part.sum()) for part in (self.base, self.left, self.n))
        return pd.DataFrame(
            [
                {
                    "edit": self.name,
                    "prompts": self.prompts,
                    "explained": self.share,
                    "base_kl": base / max(n, 1),
                    "left_kl": left / max(n, 1),
                    "outputs": round(n),
                }
            ]
        )


@final
@dataclass(frozen=True)
class Grown:
    """An edit on the way to the one found."""

    stage: str
    """"first", "rank" or "site": what was added last."""
    sites: tuple[str, ...]
    rank: int
    explained: float
    """The share explained of the examples that the search chooses by."""
    kept: bool
    """Whether the search went on from it."""


@final
@dataclass(frozen=True)
class Replaced:
    """What is explained if one component's output is replaced by the finetuned model's own."""

    point: str
    """"resid_post", "attn_out", "q and k", "v", "z" or "mlp_out"."""
    layer: int
    head: int | None
    """The head that is replaced; None for all."""
    alone: float
    """The share explained by this replacement in the base, without the edit."""
    with_edit: float
    """The share explained by the edit and this replacement together."""
    random: float
    """Control: `alone` with the activations of the random finetune; NaN without one."""

    @property
    def where(self) -> str:
        head = "" if self.head is None else f" head {self.head}"
        return f"L{self.layer}{head} {self.point}"


@final
@dataclass(frozen=True, eq=False, repr=False)
class ExplainedFinetune(Result):
    """The smallest edit found that reproduces a finetuned model's outputs, and what it leaves.

    Equal outputs are not evidence of an equal mechanism: many edits, at many sites, can give the
    same outputs.
    """

    sites: tuple[str, ...]
    """Of the edit found."""
    kind: str
    """Its class."""
    rank: int
    numbers: int
    """Its parameters."""
    shares: tuple[Explained, ...]
    """What the edit found explains, on each kind of prompts."""
    controls: tuple[Explained, ...]
    """The same for edits of the same budget, at the sites and with the rank that were chosen for
    the finetune. One "on the labels" never saw the finetune and is compared with its outputs; the
    others are distilled from another finetune in its place, and compared with the outputs of that
    one.
    """
    layers: tuple[Explained, ...]
    """What an edit of the smallest rank explains at each single site, on held-out prompts."""
    path: tuple[Grown, ...]
    replaced: tuple[Replaced, ...]
    """What replacing activations by the finetuned model's own explains, on some of the held-out prompts."""
    replaced_share: float
    """What the edit found explains on those prompts."""
    n_replaced: int
    """Number of those prompts."""
    budget: str

    def of(self, prompts: str) -> Explained:
        """Returns the share that the edit found explains on one kind of prompts.

        Args:
            prompts: "trained on", "held out" or "far".

        Raises:
            ValueError: If nothing was measured on them.
        """
        found = [share for share in self.shares if share.prompts == prompts]
        if not found:
            known = ", ".join(repr(share.prompts) for share in self.shares)
            raise ValueError(f"nothing was measured on {prompts!r}: choose from {known}")
        return found[0]

    def rest(self) -> Replaced | None:
        """Returns the component whose replacement alone explains most, of those inside a block; None if none was replaced.

        Of components within .02 of one another it is the narrowest: queries and keys before the
        attention's output. The residual stream is left out, because it carries all that is
        upstream.
        """
        # A narrower component first, and Python's max keeps the first of equals.
        order = ("q and k", "v", "mlp_out", "attn_out")
        inside = [one for one in self.replaced if one.point in order and one.head is None]
        inside = sorted((one for one in inside if one.alone == one.alone), key=lambda one: order.index(one.point))
        if not inside:
            return None
        # Not with the edit: where it explains nearly all, so does every component together with it.
        most = max(one.alone for one in inside)
        return next(one for one in inside if one.alone >= most - 0.02)

    def headline(self) -> str:
        found = "; ".join(f"{_percent(share.share)} {share.prompts}" for share in self.shares)
        unseen = [one for one in self.controls if one.prompts == "held out"]
        beside = "; ".join(f"{_percent(one.share)} {one.name}" for one in unseen) or "none"
        rest = self.rest()
        where = "" if rest is None else f"; replacing {rest.where} alone gives {_percent(rest.alone)}"
        return (
            f"{self.kind} of rank {self.rank} at {', '.join(self.sites)} ({self.numbers:,} numbers) explains of "
            f"KL(finetuned || base): {found}. Controls, held out: {beside}{where}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per edit and kind of prompts: the edit found, then the controls, then each single site."""
        rows = [share.to_dataframe() for share in (*self.shares, *self.controls, *self.layers)]
        return pd.concat(rows, ignore_index=True)

    def path_to_dataframe(self) -> pd.DataFrame:
        """Returns one row per edit that the search tried: what was added, its sites and rank, and the share that it was chosen by."""
        return pd.DataFrame([{**asdict(step), "sites": " + ".join(step.sites)} for step in self.path])

    def rest_to_dataframe(self) -> pd.DataFrame:
        """Returns one row per replaced component."""
        return pd.DataFrame([asdict(one) for one in self.replaced])

    def by_token(self) -> pd.DataFrame:
        """Returns one row per edit, kind of prompts and token: the share explained there, and KL(finetuned || base)."""
        return pd.DataFrame(list(self._tokens()))

    def _tokens(self) -> Iterator[dict[str, object]]:
        for one in (*self.shares, *self.controls, *self.layers):
            for token, (share, base, n) in enumerate(
                zip(one.by_token().tolist(), one.base.tolist(), one.n.tolist(), strict=True)
            ):
                yield {
                    "edit": one.name,
                    "prompts": one.prompts,
                    "token": token,
                    "explained": share,
                    "base_kl": base / max(n, 1),
                    "outputs": round(n),
                }


def _percent(share: float) -> str:
    return "an unknown share" if share != share else f"{share:.0%}"
