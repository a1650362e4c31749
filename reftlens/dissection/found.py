"""The results of a dissection, each with its null or control. Display and saving are elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from reftlens.results import (
    Ablation,
    Agreement,
    DirectionReadout,
    Dose,
    EditSize,
    Identification,
    Identified,
    Interchanged,
    Ledger,
    Meaning,
    OffManifold,
    Operator,
    Outcome,
    Overlap,
    PatchMap,
    Projection,
    ReadContexts,
    ReadSpace,
    Spread,
    TokenMap,
)


@dataclass(frozen=True, eq=False)
class Found:
    """All results of a dissection, each with its null or control. `left_out` gives the reason for each part without one."""

    model: str
    edit: str
    """The `repr` of the edit."""
    n_wanted: int
    """Number of examples that the base does not answer as wanted, which the edit should change."""
    n_kept: int
    """Number of examples that the base already answers as wanted, which the edit should not change."""
    outcomes: tuple[Outcome, ...] = ()
    effect: TokenMap | None = None
    """The effect of each site and token alone."""
    ablation: Ablation | None = None
    heads: PatchMap | None = None
    """The part of the effect that each later head carries."""
    mlps: PatchMap | None = None
    """The part of the effect that each later MLP carries, by token."""
    direct: Float[Tensor, " example"] | None = None
    """The direct effect on each of the same examples, in nats."""
    direct_control: Float[Tensor, " example"] | None = None
    """The same with changes in random directions."""
    paths: PatchMap | None = None
    spread: Spread | None = None
    projections: tuple[Projection, ...] = ()
    operators: tuple[Operator, ...] = ()
    untrained: tuple[Operator, ...] = ()
    """The same edit, newly initialised, on the same inputs: the control of the spectrum."""
    untrained_ranks: tuple[tuple[float, ...], ...] = ()
    """For each site, the effective rank in several initialisations, of which `untrained` is the first."""
    identified: Identification | None = None
    """How far outputs determine these directions."""
    sizes: EditSize | None = None
    ledger: Ledger | None = None
    readouts: tuple[DirectionReadout, ...] = ()
    contexts: tuple[ReadContexts, ...] = ()
    meanings: tuple[Meaning, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    dose: Dose | None = None
    read_spaces: tuple[ReadSpace, ...] = ()
    interchanges: tuple[Interchanged, ...] = ()
    manifolds: tuple[OffManifold, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    """Pairs of a part, or a part at one site, that was left out and the reason."""
    parts: tuple[str, ...] = ()
    """Names of the parts that were asked for; empty in files of an earlier version."""
    seconds: tuple[tuple[str, float], ...] = ()
    """Wall-clock time of each part."""
    settings: tuple[tuple[str, str], ...] = ()

    def outcomes_of(self, wanted: str) -> tuple[Outcome, ...]:
        """Returns the outcomes of the examples that should change, "new answer", or of those that should not, "old answer".

        Args:
            wanted: the right answer of the group.
        """
        return tuple(outcome for outcome in self.outcomes if outcome.wanted == wanted)

    @property
    def identified_sites(self) -> tuple[Identified, ...]:
        """How far the directions of each site are identified; empty if that was not measured."""
        return () if self.identified is None else self.identified.sites

    def with_identified(self, frame: pd.DataFrame, *kinds: str) -> pd.DataFrame:
        """Adds the dimensions in which each direction is identified to a table of directions, if that was measured.

        Args:
            frame: has the columns "site" and "direction".
            kinds: "write", "read" or both.
        """
        if self.identified is None:
            return frame
        known = pd.concat([site.to_dataframe() for site in self.identified.sites], ignore_index=True)
        counted = [f"{kind}_{part}" for kind in kinds for part in ("identified", "dimensions")]
        return frame.merge(known[["site", "direction", *counted]], on=["site", "direction"], how="left")

    def beside_untrained(self) -> list[tuple[Operator, Operator | None]]:
        """Pairs each site's operator with that of the untrained edit, or with None if there is none."""
        fresh = self.untrained or (None,) * len(self.operators)
        return list(zip(self.operators, fresh, strict=True))
