"""The results of a dissection, each with its null or control. Display and saving are elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from reftlens.results import (
    Agreement,
    DirectionReadout,
    Dose,
    EditSize,
    Interchanged,
    Ledger,
    OffManifold,
    Operator,
    Outcome,
    Overlap,
    ReadContexts,
    ReadSpace,
)


@dataclass(frozen=True, eq=False)
class Findings:
    """All results of a dissection, each with its null or control. `left_out` gives the reason for each empty field."""

    model: str
    edit: str
    """The `repr` of the edit."""
    n_wanted: int
    """Number of examples that the base does not answer as wanted, which the edit should change."""
    n_kept: int
    """Number of examples that the base already answers as wanted, which the edit should not change."""
    outcomes: tuple[Outcome, ...] = ()
    operators: tuple[Operator, ...] = ()
    untrained: tuple[Operator, ...] = ()
    """The same edit, newly initialised, on the same inputs: the control of the spectrum."""
    sizes: EditSize | None = None
    ledger: Ledger | None = None
    readouts: tuple[DirectionReadout, ...] = ()
    contexts: tuple[ReadContexts, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    dose: Dose | None = None
    read_spaces: tuple[ReadSpace, ...] = ()
    interchanges: tuple[Interchanged, ...] = ()
    manifolds: tuple[OffManifold, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    """Pairs of a part that was left out and the reason."""
    seconds: tuple[tuple[str, float], ...] = ()
    """Wall-clock time of each part."""
    settings: tuple[tuple[str, str], ...] = ()

    def beside_untrained(self) -> list[tuple[Operator, Operator | None]]:
        """Pairs each site's operator with that of the untrained edit, or with None if there is none."""
        fresh = self.untrained or (None,) * len(self.operators)
        return list(zip(self.operators, fresh, strict=True))
