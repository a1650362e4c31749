"""`reftlens trace`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from reftlens.cli.options import AsJson, Quiet


def trace(
    model: Annotated[str, typer.Argument(help="Base model: an embedded organism, a local directory or a hub name.")],
    pairs: Annotated[
        Path,
        typer.Argument(
            help="JSON Lines with clean, corrupted, answer (with its space) and subject, and unrelated for a control."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the figure and the numbers.")] = Path("trace"),
    device: Annotated[str, typer.Option(help="Device: cpu, cuda, ..., or auto for a GPU if there is one.")] = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Trace where a base model holds the answers to its prompts: a map over layers and tokens."""
    from reftlens.files.folder import Replacement

    with Replacement(out, marker="trace.json") as folder:
        from reftlens import plot
        from reftlens.analysis import probability_of
        from reftlens.analysis import trace as trace_causally
        from reftlens.cli.output import prepare, print_frame, print_json, say
        from reftlens.paper.runs.config import RunConfig
        from reftlens.paper.runs.folder import load_base
        from reftlens.paper.tasks.records import read

        prepare(model, quiet=quiet)
        raws = read(pairs, within=(), split="")
        columns = {name: [raw.text(name) for raw in raws] for name in ("clean", "corrupted", "answer", "subject")}
        unrelated = [raw.text("unrelated") for raw in raws] if "unrelated" in raws[0].fields else None
        bridge = load_base(RunConfig(model=model, device=device))
        result = trace_causally(
            bridge,
            columns["clean"],
            columns["corrupted"],
            probability_of(bridge, columns["clean"], columns["answer"]),
            subjects=columns["subject"],
            unrelated=unrelated,
            progress=not quiet,
        )
        cells = result.to_dataframe()
        numbers = {"model": model, "quantity": result.quantity, "control": result.control_name, "n": result.n_prompts}
        numbers["cells"] = json.loads(cells.to_json(orient="records"))
        (folder / "trace.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
        title = f"Where {Path(model).name} holds the answer: causal tracing"
        (folder / "trace.png").write_bytes(plot.png(plot.effect_map(result, title=title)))
    if as_json:
        print_json(numbers)
        return
    largest = cells.sort_values("value", ascending=False).head(8).drop(columns="subject")
    print_frame(largest, title=f"{result.quantity}: the largest cells, over {result.n_prompts} prompts")
    say(f"wrote {out / 'trace.png'}, {out / 'trace.json'}")
