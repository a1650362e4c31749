"""`reftlens lm-eval`: the lm-evaluation-harness on an edited model."""

from __future__ import annotations

import sys

import typer


def lm_eval(context: typer.Context) -> None:
    """Evaluate an edit with the lm-evaluation-harness. All options are those of its `lm_eval run`.

    Name the edit in --model_args: edit=RUN, and base=true for its base with the same tokens.
    """
    try:
        from lm_eval.__main__ import cli_evaluate

        from reftlens.paper import harness  # noqa: F401  (registers the model)
    except ImportError as error:
        raise ValueError(
            f"lm-eval wants the lm-evaluation-harness ({error}): pip install 'reftlens[harness]'"
        ) from error
    # cli_evaluate takes no arguments; it parses sys.argv.
    sys.argv = ["lm_eval", "run", "--model", "reftlens", *context.args]
    cli_evaluate()
