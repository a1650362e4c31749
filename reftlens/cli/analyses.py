"""Commands that run one analysis alone. Each is made from the signature and the docstring of its function.

The source of the function is read without importing it, so that help stays quick. What the function
takes by keyword, as a text, a number, a truth value or a list of texts, is an option of the same
name, with the docstring's words as its help.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import re
from collections.abc import Callable
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from reftlens.cli.options import AsJson, Base, OwnDevice, Quiet, Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reftlens.results import EditGraph, Result

# As texts, because the file of an analysis is parsed and not imported.
_KINDS: dict[str, Any] = {"str": str, "int": int, "bool": bool, "Sequence[str] | None": list[str] | None}
"""Annotations of arguments that become options."""
_OURS = ("progress", "memory_bytes")
"""Arguments that no command asks for."""
_SHOWN = 12
"""Number of lines of a printed table."""

_EDIT = {
    "directory": (Trained, inspect.Parameter.empty),
    "examples": (
        Annotated[
            Path | None,
            typer.Option(
                help="Examples, in any form that train --data accepts. Default: the training data of the run."
            ),
        ],
        None,
    ),
    "model": (Base, None),
    "n_prompts": (
        Annotated[int, typer.Option(min=1, help="At most so many prompts, all of the commonest length in tokens.")],
        16,
    ),
}
_BASE = {
    "model": (
        Annotated[str, typer.Argument(help="Base model: an embedded organism, a local directory or a hub name.")],
        inspect.Parameter.empty,
    ),
    "pairs": (
        Annotated[
            Path,
            typer.Argument(
                help="JSON Lines with clean, corrupted, answer (with its space) and subject, and unrelated for a control."
            ),
        ],
        inspect.Parameter.empty,
    ),
}


class _Asked(NamedTuple):
    """What a function is called with besides the options of its command."""

    given: tuple[Any, ...]
    named: dict[str, Any]
    about: dict[str, Any]
    """What the result is of: model, edit, prompts."""


def command(name: str, function: str, *, of: Literal["edit", "base"]) -> Callable[..., None]:
    """Makes a command for typer.

    Args:
        name: of the command; its numbers are written to "name.json".
        function: name of the analysis, in the file of this name in `reftlens.analysis`.
        of: whether it asks about a trained edit or about a base model.
    """
    about, own = _described(function)
    common = {
        "out": (Annotated[Path, typer.Option(help="Folder for the figure and the numbers.")], Path(name)),
        "device": (OwnDevice, "auto"),
        "quiet": (Quiet, False),
        "as_json": (AsJson, False),
    }
    arguments = {**(_EDIT if of == "edit" else _BASE), **own, **common}

    def run(**values: Any) -> None:
        # Typer gives an empty list for an option that was not given.
        _run(
            name,
            function,
            of,
            values,
            {option: values[option] or None if values[option] == [] else values[option] for option in own},
        )

    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(key, kind, default=default, annotation=annotation)
        for key, (annotation, default) in arguments.items()
    ]
    # typer makes the options from the signature, which **values does not show.
    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {key: annotation for key, (annotation, _) in arguments.items()}
    run.__doc__, run.__name__ = about, name
    return run


def _described(function: str) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """Returns the question that a file of `reftlens.analysis` answers, and the options of its function."""
    # `files` imports the package that it is given, and `reftlens` alone is light.
    source = files("reftlens").joinpath("analysis", f"{function}.py")
    # Parsed, not imported, because an import loads torch and help must not wait for it.
    tree = ast.parse(source.read_text(encoding="utf-8"))
    (node,) = (found for found in tree.body if isinstance(found, ast.FunctionDef) and found.name == function)
    listed = (ast.get_docstring(node) or "").partition("Args:\n")[2].partition("\n\n")[0]
    lines = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", listed, flags=re.MULTILINE)
    told = {key: " ".join(text.replace("`", "").split()) for key, text in lines}
    options = {}
    for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        kind = _KINDS.get(ast.unparse(argument.annotation) if argument.annotation else "")
        if kind is None or argument.arg in _OURS or default is None:
            continue
        flag = f"--{argument.arg.replace('_', '-')}"
        text = told[argument.arg]
        option = typer.Option(flag, help=f"{text[0].upper()}{text[1:]}")
        options[argument.arg] = (Annotated[kind, option], ast.literal_eval(default))
    return (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " "), options


def _run(name: str, function: str, of: str, values: dict[str, Any], options: dict[str, Any]) -> None:
    from reftlens.files.folder import Replacement

    out, quiet = values["out"], values["quiet"]
    for key in ("examples", "pairs"):
        place = values.get(key)
        if place is not None and not place.exists():
            raise ValueError(f"no such file or folder: {place}")
    # Opened first: a folder that cannot be replaced is refused before torch is imported.
    with Replacement(out, marker=f"{name}.json") as folder:
        from reftlens import analysis
        from reftlens.cli.output import leave_writing_to_main, print_frame, print_json, say
        from reftlens.plot import png
        from reftlens.results import EditGraph
        from reftlens.results.words import labelled

        asked = (_of_edit if of == "edit" else _of_base)(function, values)
        result = getattr(analysis, function)(*asked.given, **asked.named, **options, progress=not quiet)
        leave_writing_to_main()
        frame = result.to_dataframe()
        numbers = {"analysis": function, **asked.about, "options": options, "headline": result.headline()}
        numbers |= _scalars(result)
        # pandas writes NaN as null; json would write NaN, which is not JSON.
        numbers["cells"] = json.loads(frame.to_json(orient="records"))
        if isinstance(result, EditGraph):
            numbers["curve"] = json.loads(result.curve().to_json(orient="records"))
            result.save_circuit_tracer(folder / "circuit-tracer")
            (folder / f"{name}.html").write_text(_explored(result, numbers), encoding="utf-8")
        (folder / f"{name}.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
        (folder / f"{name}.png").write_bytes(png(_drawn(result)))
    if values["as_json"]:
        print_json(numbers)
        return
    print_frame(labelled(_largest(frame)), title=result.headline())
    say(f"wrote {out / f'{name}.png'}, {out / f'{name}.json'}")


def _of_edit(function: str, values: dict[str, Any]) -> _Asked:
    """Prompts that the edit should change, and the logit of the wanted answer minus that of the base's answer."""
    from reftlens.cli.output import prepare, say
    from reftlens.dissection.config import DissectConfig
    from reftlens.dissection.work import Work
    from reftlens.paper.runs.folder import config_of, is_run, open_run
    from reftlens.paper.runs.testing import pairs_in, training_pairs
    from reftlens.training.objectives import Completion

    directory, examples = values["directory"], values["examples"]
    config = config_of(directory, model=values["model"])
    if examples is None and not is_run(directory):
        raise ValueError(
            "a saved edit is measured on examples: pass --examples FILE, in any form that train --data accepts"
        )
    prepare(config.model, quiet=values["quiet"])
    pairs = Completion().read(training_pairs(config) if examples is None else pairs_in(examples, config))
    opened = open_run(directory, {"device": values["device"]}, model=values["model"])
    work = Work(opened.bridge, opened.reft, pairs, pairs, DissectConfig(n_mapped=values["n_prompts"]))
    prompts, metric = work.mapped
    for what, note in work.notes:
        if not values["quiet"]:
            say(f"{what}: {note}", err=True)
    about = {"model": config.model, "edit": str(directory), "prompts": prompts}
    return _Asked((opened.bridge, opened.reft, prompts, metric), {}, about)


def _of_base(function: str, values: dict[str, Any]) -> _Asked:
    """Clean and corrupted prompts, and the probability of the clean answer."""
    from reftlens import analysis
    from reftlens.cli.output import prepare
    from reftlens.paper.runs.config import RunConfig
    from reftlens.paper.runs.folder import load_base
    from reftlens.paper.tasks.records import read

    model = values["model"]
    prepare(model, quiet=values["quiet"])
    raws = read(values["pairs"], within=(), split="")
    wanted = ("clean", "corrupted", "answer", *(("subject",) if function == "trace" else ()))
    columns = {name: [raw.text(name) for raw in raws] for name in wanted}
    named: dict[str, Any] = {}
    if "unrelated" in raws[0].fields:
        named["unrelated"] = [raw.text("unrelated") for raw in raws]
    if "subject" in columns:
        named["subjects"] = columns["subject"]
    bridge = load_base(RunConfig(model=model, device=values["device"]))
    metric = analysis.probability_of(bridge, columns["clean"], columns["answer"])
    about = {"model": model, "prompts": columns["clean"]}
    return _Asked((bridge, columns["clean"], columns["corrupted"], metric), named, about)


def _explored(result: EditGraph, numbers: dict[str, Any]) -> str:
    """A page on which the nodes and edges of a graph say what they are."""
    from reftlens.plot.page import Report, Section, render
    from reftlens.results.words import labelled

    read = (
        "Nodes are directions that the edit writes (e0.1 is direction 1 of site 0), heads (2.1 is head 1 of layer 2) and MLPs, "
        "each at one token. Of an edge, only its reader sees what its sender changes.",
        "Drawn is the smallest kept graph that alone has 90% of the effect, or the nearest to it. Control: the graph of the edit "
        "turned to random directions.",
    )
    tables = (("Edges, largest first", labelled(result.to_dataframe())), ("Kept graphs", result.curve()))
    section = Section("What is the graph of the edit?", read, graphs=(("The graph", result),), tables=tables)
    settings = {key: numbers[key] for key in ("model", "edit", "options")}
    return render(Report("The graph of an edit", result.headline(), (section,), settings))


def _scalars(result: Result) -> dict[str, Any]:
    """The numbers and texts of a result besides its tensors; null for what is not finite."""
    found: dict[str, Any] = {}
    for item in fields(result):  # type: ignore[arg-type]
        value = getattr(result, item.name)
        if isinstance(value, (str, int, float)):
            found[item.name] = None if isinstance(value, float) and not math.isfinite(value) else value
    return found


def _largest(frame: Any) -> Any:
    """The lines with the largest values, where there are many."""
    by = next((column for column in ("value", "restored", "shapley") if column in frame.columns), None)
    if by is None or len(frame) <= _SHOWN:
        return frame
    return frame.dropna(subset=by).sort_values(by, ascending=False, key=abs).head(_SHOWN)


def _drawn(result: Result) -> Figure:
    from reftlens import plot
    from reftlens.results import PatchMap

    # Directions with "into" are of an edit's effect, which is drawn as ways through components.
    if isinstance(result, PatchMap) and result.axes in (("layer", "head"), ("sender", "receiver")):
        return plot.mediation(result) if "into" in result.direction else plot.patch_map(result)
    return result.plot()
