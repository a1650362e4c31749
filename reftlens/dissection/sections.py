"""Renders a dissection as a page: the section of each part, then a list of what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from reftlens.dissection.findings import findings
from reftlens.dissection.found import Found
from reftlens.dissection.names import names_in, with_short_names
from reftlens.dissection.parts import PARTS
from reftlens.dissection.parts.part import table
from reftlens.plot.page import Report, Section


def report(result: Found) -> Report:
    """Renders the whole page.

    Args:
        result: a dissection.
    """
    settings: dict[str, object] = {"model": result.model, "edit": result.edit, **dict(result.settings)}
    # The page uses short names of sites, so its settings say what they stand for.
    settings |= {short: name for name, short in names_in(result).items()}
    settings |= {f"seconds: {part}": f"{seconds:.1f}" for part, seconds in result.seconds}
    return Report(
        title="A trained edit, taken apart",
        lead=f"{result.edit.splitlines()[0]} on {result.model}: {result.n_wanted} examples that the base answers "
        f"otherwise, {result.n_kept} that it answers as wanted already.",
        sections=tuple(sections(result)),
        settings=settings,
        findings=findings(result),
    )


def sections(result: Found, names: Sequence[str] | None = None) -> list[Section]:
    """Renders the results in the order of the questions, then a list of the parts left out, with reasons.

    Args:
        result: a dissection.
        names: names of parts; all, and what was left out, by default. A part without a result has
            no section.
    """
    result = with_short_names(result)
    chosen = [part for name, part in PARTS.items() if names is None or name in names]
    # The name of the part is what its finding links to.
    drawn = [replace(section, name=part.name) for part in chosen if (section := part.draw(result)) is not None]
    if names is None and result.left_out:
        frame = table([pd.DataFrame(result.left_out, columns=["what", "why"])])
        drawn.append(Section("Left out", tables=(("What, and why", frame),)))
    return drawn
