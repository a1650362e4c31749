"""The result of a dissection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from reftlens.display import framed
from reftlens.dissection.findings import findings
from reftlens.dissection.found import Found
from reftlens.dissection.saving import read_dissection, save_dissection
from reftlens.dissection.sections import report
from reftlens.dissection.summary import Summary, summarize
from reftlens.plot.page import render
from reftlens.results import Finding


@final
@dataclass(frozen=True, eq=False, repr=False)
class Dissection(Found):
    """All results about one edit. It displays as a page and can be saved to a folder."""

    def save(self, directory: str | Path) -> Path:
        """Writes JSON and safetensors to a folder, atomically. `load_dissection` reads it.

        Args:
            directory: the folder; replaced if it is a saved dissection.

        Raises:
            ValueError: If the folder holds anything else.
            OSError: If it cannot be written.
        """
        return save_dissection(self, Path(directory))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Eight questions about the edit with their answers, each with its null; "not measured" for parts that did not run."""
        return findings(self)

    def headline(self) -> str:
        """One line: whether the edit works, and what else it changes."""
        answers = {finding.section: finding.answer for finding in self.findings}
        return f"{answers['works']} {answers['else']}"

    def summary(self) -> Summary:
        """Returns the findings and the main numbers, each with its null or control; `print` it, or take `to_dataframe()`."""
        return Summary(self.findings, summarize(self))

    def to_html(self) -> str:
        """Returns the report as one self-contained page."""
        return render(report(self))

    def _repr_html_(self) -> str:
        return framed(repr(self), self.to_html())

    def __str__(self) -> str:
        return f"{self!r}\n{self.summary()}"

    def __repr__(self) -> str:
        used = ", ".join(
            f"{op.where}: {op.effective_rank:.1f} of {len(op.spectrum)}, input-dependent {op.input_rank:.1f}"
            + (f" (untrained {fresh.effective_rank:.1f} and {fresh.input_rank:.1f})" if fresh is not None else "")
            for op, fresh in self.beside_untrained()
        )
        left = f"; left out: {', '.join(what for what, _ in self.left_out)}" if self.left_out else ""
        return (
            f"Dissection of {self.edit.splitlines()[0]} on {self.model}, {self.n_wanted + self.n_kept} examples"
            f"{'; effective rank ' + used if used else ''}{left}"
        )


def load_dissection(directory: str | Path) -> Dissection:
    """Reads a dissection that `Dissection.save` wrote.

    Args:
        directory: the folder.

    Raises:
        ValueError: If it is not a saved dissection, or is damaged.
        OSError: If it cannot be opened.
    """
    return read_dissection(Path(directory), Dissection)
