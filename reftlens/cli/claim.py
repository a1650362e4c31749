"""`reftlens claim`: the paper's side claims, one command each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reftlens.cli.options import AsJson, Quiet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reftlens.results.claims import ClaimResult

app = typer.Typer(
    help="Test the paper's side claims, each with a control that would fail if the claim were trivial.",
    no_args_is_help=True,
)

Model = Annotated[
    str,
    typer.Option(
        help="An embedded organism (with settings for its size), a local directory or a hub name (with the paper's settings)."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of the initial weights and of all random draws.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the figure and the numbers. Default: claim-NAME.")]


@app.command(epilog="Example: reftlens claim memorise --model gpt2 --text alice.txt --out memorise")
def memorise(
    model: Model = "facts-small",
    seed: Seed = 0,
    out: Out = None,
    text: Annotated[Path | None, typer.Option(help="Text file to memorise, from its beginning.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """How many tokens can one rank-1 vector at one token reproduce exactly?"""

    def compute() -> tuple[ClaimResult, Figure]:
        from reftlens import plot
        from reftlens.paper.claims.memorise import run

        string = None if text is None else text.read_text(encoding="utf-8")
        result = run(model, seed=seed, text=string, progress=not quiet)
        return result, plot.memorised(result)

    _try("memorise", compute, model=model, out=out, quiet=quiet, as_json=as_json)


@app.command(epilog="Example: reftlens claim codebook --model gpt2 --out codebook")
def codebook(
    model: Model = "facts-small", seed: Seed = 0, out: Out = None, quiet: Quiet = False, as_json: AsJson = False
) -> None:
    """How many keys can one edit map to their words?"""

    def compute() -> tuple[ClaimResult, Figure]:
        from reftlens import plot
        from reftlens.paper.claims.codebook import run

        result = run(model, seed=seed, progress=not quiet)
        return result, plot.codebook(result)

    _try("codebook", compute, model=model, out=out, quiet=quiet, as_json=as_json)


@app.command(epilog="Example: reftlens claim compose --model gpt2 --out compose")
def compose(
    model: Model = "facts-small", seed: Seed = 0, out: Out = None, quiet: Quiet = False, as_json: AsJson = False
) -> None:
    """Do two tasks that are trained in the two halves of one edit work together?"""

    def compute() -> tuple[ClaimResult, Figure]:
        from reftlens import plot
        from reftlens.paper.claims.compose import run

        result = run(model, seed=seed, progress=not quiet)
        return result, plot.composed(result)

    _try("compose", compute, model=model, out=out, quiet=quiet, as_json=as_json)


@app.command(epilog="Example: reftlens claim manner --model gpt2 --out manner")
def manner(
    model: Model = "facts-small", seed: Seed = 0, out: Out = None, quiet: Quiet = False, as_json: AsJson = False
) -> None:
    """Do five examples change a model's manner without changing what it knows?"""

    def compute() -> tuple[ClaimResult, Figure]:
        from reftlens import plot
        from reftlens.paper.claims.manner import run

        result = run(model, seed=seed, progress=not quiet)
        return result, plot.mannered(result)

    _try("manner", compute, model=model, out=out, quiet=quiet, as_json=as_json)


@app.command(epilog="Example: reftlens claim overhead --model gpt2 --out overhead")
def overhead(
    model: Model = "facts-small", seed: Seed = 0, out: Out = None, quiet: Quiet = False, as_json: AsJson = False
) -> None:
    """How much slower is decoding with an edit of the prompt? (On a CPU.)"""

    def compute() -> tuple[ClaimResult, Figure]:
        from reftlens import plot
        from reftlens.paper.claims.overhead import run

        result = run(model, seed=seed, progress=not quiet)
        return result, plot.overhead(result)

    _try("overhead", compute, model=model, out=out, quiet=quiet, as_json=as_json)


@app.command(epilog="Example: reftlens claim steering --out steering")
def steering(
    model: Annotated[str, typer.Option(help="An embedded organism, since the judge knows its facts.")] = "facts-small",
    seed: Annotated[int, typer.Option(help="First of three seeds.")] = 0,
    out: Out = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Does a trained edit steer better than a difference of means, at calibrated strength? (Seven minutes of one core.)"""

    def compute() -> tuple[ClaimResult, Figure]:
        from reftlens import plot
        from reftlens.paper.claims.steering import run

        result = run(model, seed=seed, progress=not quiet)
        return result, plot.steering(result.compared)

    _try("steering", compute, model=model, out=out, quiet=quiet, as_json=as_json)


def _try(
    name: str,
    compute: Callable[[], tuple[ClaimResult, Figure]],
    *,
    model: str,
    out: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Runs one claim, writes `claim.json` and `claim.png`, and prints the claim, the settings and the findings."""
    from reftlens.files.folder import Replacement

    place = Path(f"claim-{name}") if out is None else out
    # Opened first: a folder that cannot be replaced is refused before anything is computed.
    with Replacement(place, marker="claim.json") as folder:
        from reftlens.cli.output import prepare, print_frame, print_json, print_table, say
        from reftlens.plot import png

        prepare(model, quiet=quiet)
        result, figure = compute()
        frame = result.to_dataframe()
        numbers = {
            "claim": result.claim.text,
            "source": result.claim.source,
            "model": result.claim.model,
            "settings": {what: {"paper": theirs, "here": ours} for what, theirs, ours in result.claim.settings},
            # pandas writes NaN as null; json would write NaN, which is not JSON.
            "rows": json.loads(frame.to_json(orient="records")),
            "findings": list(result.findings()),
        }
        (folder / "claim.json").write_text(json.dumps(numbers, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "claim.png").write_bytes(png(figure))
    if as_json:
        print_json(numbers)
        return
    say(f"Claim: {result.claim.text}\n       {result.claim.source}\n")
    print_table(["setting", "paper", "here"], [list(row) for row in result.claim.settings], title="Settings")
    print_frame(frame, title=f"Results on {model}")
    for finding in result.findings():
        say(f"- {finding}")
    say(f"wrote {place / 'claim.png'}, {place / 'claim.json'}")
