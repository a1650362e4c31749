"""`reftlens params`."""

from __future__ import annotations

from typing import Annotated

import typer

from reftlens.cli.options import AsJson, Settings


def params(
    presets: Annotated[
        list[str] | None,
        typer.Argument(help="Presets, TOML files or runs. Default: all rows of the paper.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Count for another base: llama-7b, an organism, a local directory or a hub name.")
    ] = None,
    settings: Settings = None,
    parts: Annotated[bool, typer.Option("--parts", help="Also list each site or each kind of weight matrix.")] = False,
    as_json: AsJson = False,
) -> None:
    """Count the trained parameters of presets, also as a percentage of the base. Does not load weights."""
    from reftlens.cli.output import print_json, print_table
    from reftlens.paper.runs.config import parse_settings
    from reftlens.paper.runs.parameters import count_parameters
    from reftlens.paper.runs.presets import ADAPTERS, ROWS, read_settings

    overrides = parse_settings(settings or ())
    found = []
    for name in presets or ROWS:
        row = ADAPTERS[name] if name in ADAPTERS else read_settings(name, overrides)
        found.append((name, row.model if model is None else model, count_parameters(row, model=model)))
    # The paper's percentages are for its own models and settings.
    printed: dict[str, str] = {}
    if model is None and not overrides:
        printed = {row.name: row.percent or "?" for row in ROWS.values()}
    if as_json:
        print_json(
            [
                {
                    "preset": name,
                    "model": base,
                    "trained": count.trained,
                    "base": count.base,
                    "percent": count.percent,
                    "percent_of_both": count.percent_of_both,
                    "paper": printed.get(name),
                    "parts": dict(count.parts),
                }
                for name, base, count in found
            ]
        )
        return
    lines = []
    for name, base, count in found:
        percents = [f"{count.percent:.6f}", f"{count.percent_of_both:.6f}", printed.get(name, "")]
        lines.append([name, base, f"{count.trained:,}", f"{count.base:,}", *percents])
        if parts:
            lines += [[f"  {where}", "", f"{n:,}", "", "", "", ""] for where, n in count.parts.items()]
    print_table(["preset", "base", "trained", "in the base", "% of base", "% of both", "paper"], lines)
