"""What a dissection found: every result with its null or control, and nothing that shows or saves it."""

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
    """All that was found, each result with its null or control. Empty where `left_out` says why."""

    model: str
    edit: str
    """The edit as it prints."""
    n_wanted: int
    """Examples that the base does not answer as wanted: what the edit is for."""
    n_kept: int
    """Examples that it already does: what the edit must leave alone."""
    outcomes: tuple[Outcome, ...] = ()
    operators: tuple[Operator, ...] = ()
    untrained: tuple[Operator, ...] = ()
    """The same edit with fresh weights on the same inputs: the control of the spectrum."""
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
    """(what, why)."""
    seconds: tuple[tuple[str, float], ...] = ()
    """Wall-clock time of each part."""
    settings: tuple[tuple[str, str], ...] = ()

    def beside_untrained(self) -> list[tuple[Operator, Operator | None]]:
        """Each site's operator with the untrained edit's at the same place in the list; None where there is none."""
        fresh = self.untrained or (None,) * len(self.operators)
        return list(zip(self.operators, fresh, strict=True))
