"""Converts exceptions into one line on stderr and exit status 1. Commands catch exceptions nowhere else."""

from __future__ import annotations

from typing import Any, final

import typer
from typer.core import TyperGroup

from reftlens.text import harmless

LOGGERS = ("wandb", "mlflow", "trackio")
"""Packages for `--report-to` with errors of their own, such as a missing key."""


@final
class Commands(TyperGroup):
    """The commands. Errors that a user can fix become one line; bugs of this package keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # `reftlens presets | head` is not an error; typer exits quietly.
        except Exception as error:
            logger = type(error).__module__.partition(".")[0]
            if not isinstance(error, (ValueError, OSError, FloatingPointError, ImportError)) and logger not in LOGGERS:
                raise
            if isinstance(error, ImportError) and "pip install" not in str(error):
                raise  # a bug of this package or a broken installation, and not an extra that is missing
            typer.secho(f"error: {harmless(' '.join(str(error).split()))}", fg=typer.colors.RED, err=True)
            raise typer.Exit(code=1) from error
