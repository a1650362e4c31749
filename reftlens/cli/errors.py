"""Converts exceptions into one line on stderr and exit status 1. Commands catch exceptions nowhere else."""

from __future__ import annotations

from typing import Any, final

import typer
from typer.core import TyperGroup

from reftlens.text import harmless


@final
class Commands(TyperGroup):
    """The commands. Errors that a user can fix become one line; bugs of this package keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # `reftlens presets | head` is not an error; typer exits quietly.
        except (ValueError, OSError, FloatingPointError, ImportError) as error:
            if isinstance(error, ImportError) and "pip install" not in str(error):
                raise  # a bug of this package or a broken installation, and not an extra that is missing
            typer.secho(f"error: {harmless(' '.join(str(error).split()))}", fg=typer.colors.RED, err=True)
            raise typer.Exit(code=1) from error
