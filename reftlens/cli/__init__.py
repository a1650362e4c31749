"""The command line, with one file per command. Heavy imports wait until a command runs, so that help is fast.

Exit codes: 0 for success; 1 for a failure, with the reason in one line on stderr; 2 for wrong
usage. With `--json`, stdout carries only the result; progress and messages go to stderr.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from reftlens.cli import (
    analyses,
    benchmark,
    carry,
    certify,
    claim,
    compare,
    convert,
    demo,
    dissect,
    evaluate,
    explain_finetune,
    generate,
    lm_eval,
    params,
    presets,
    sweep,
    train,
)
from reftlens.cli.errors import Commands
from reftlens.files.modules import import_named

app = typer.Typer(
    cls=Commands,
    help="Train representation edits (ReFT) on language models, and take them apart.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(epilog="Example: reftlens demo --model gpt2 --out demo-gpt2")(demo.demo)
app.command(epilog="Example: reftlens presets --task cola")(presets.presets)
app.command(epilog="Example: reftlens params loreft-llama-7b-commonsense")(params.params)
app.command(
    epilog="Example: reftlens train loreft-llama-7b-commonsense --model gpt2 --n-train 1000 --out run"
    " | reftlens train config.toml --lr 1e-3 --set warmup_ratio=0.1 --out run"
)(train.train)
app.command("eval", epilog="Example: reftlens eval run --task boolq --n-eval 100")(evaluate.evaluate)
app.command(epilog='Example: reftlens generate run "The tower stands in" --base')(generate.generate)
app.command(epilog="Example: reftlens dissect run --preset quick --out dissect")(dissect.dissect)
for name, function, example in (
    ("map", "effect_map", "map run --leave-out"),
    ("ablate", "ablate", "ablate run --n-prompts 32"),
    ("mediate", "mediate", "mediate run --point mlp_out --over positions"),
    ("channels", "channels", "channels run --n-prompts 8"),
    ("graph", "graph", "graph run --n-prompts 8 --n-nodes 16"),
    ("paths", "paths", "paths run --senders edit --senders 2.3 --receivers 2.3 --receivers logits"),
):
    app.command(name, epilog=f"Example: reftlens {example}")(analyses.command(name, function, of="edit"))
for name, example in (("patch", "patch gpt2 pairs.jsonl --point mlp_out"), ("trace", "trace gpt2 pairs.jsonl")):
    app.command(name, epilog=f"Example: reftlens {example} --out {name}")(analyses.command(name, name, of="base"))
app.command(epilog="Example: reftlens compare run --method LoRA --method 'full fine-tuning' --seeds 2")(compare.compare)
app.command(epilog="Example: reftlens sweep --model facts-small --data mine.jsonl --trials 20 --space lr=1e-4..1e-2")(
    sweep.sweep
)
app.command(
    epilog="Example: reftlens carry run --target other-model --file prompts.txt --examples held_out.jsonl --out carried"
)(carry.carry)
app.command(epilog="Example: reftlens certify run --file population.txt --out certified")(certify.certify)
app.command(
    "explain-finetune",
    epilog="Example: reftlens explain-finetune --model gpt2 --finetuned my-lora --data mine.jsonl --labelled --far other.txt",
)(explain_finetune.explain_finetune)
app.command(epilog="Example: reftlens convert my_pyreft --model gpt2 --positions f5+l5 --out edit")(convert.convert)
app.command(epilog="Example: reftlens benchmark --only handmade --only nulls --out known.csv")(benchmark.benchmark)
app.command(
    "lm-eval",
    epilog="Example: reftlens lm-eval --tasks arc_easy --model_args edit=run --limit 100",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(lm_eval.lm_eval)
app.add_typer(claim.app, name="claim")


def _version(wanted: bool) -> bool:
    if wanted:
        from reftlens._version import __version__

        typer.echo(f"reftlens {__version__}")
        raise typer.Exit
    return wanted


def _import(modules: list[str] | None) -> list[str] | None:
    """Imports the named modules, so that the classes that they register are known by name."""
    for name in modules or ():
        try:
            # In the option's callback: classes must be known before a command reads its options.
            import_named(name)
        except ImportError as error:
            raise typer.BadParameter(f"{name} cannot be imported: {error}") from error
    return modules


@app.callback()
def main(
    own: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="MODULE",
            callback=_import,
            help="Import your own module, which registers edits or position rules with rl.register. Goes before the command.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train representation edits (ReFT) on language models, and take them apart."""
    if not sys.stderr.isatty():
        # tqdm reads this when it is first imported. In a log file, a progress bar is a line every
        # few seconds.
        os.environ.setdefault("TQDM_MININTERVAL", "5")
