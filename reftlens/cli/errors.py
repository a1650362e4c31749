"""What becomes of an exception: one line on stderr and exit status 1. The one place where the commands catch any."""

from __future__ import annotations

from typing import Any, final

import click
import typer
from typer.core import TyperGroup


@final
class Commands(TyperGroup):
    """The commands. What a user can mend is told in one line; a fault of this package keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        # Bad values, files and folders; a training that diverged; an edit that never met its model is a RuntimeError.
        except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
            if isinstance(error, (click.exceptions.Exit, click.Abort)) or not _expected(error):
                raise
            typer.secho(f"error: {' '.join(str(error).split())}", fg=typer.colors.RED, err=True)
            raise typer.Exit(code=1) from error
