"""What becomes of an exception: one line on stderr and exit status 1. The one place where the commands catch any."""

from __future__ import annotations

from typing import Any, final

import typer
from typer.core import TyperGroup

from reftlens.text import harmless


@final
class Commands(TyperGroup):
    """The commands. What a user can mend is told in one line; a fault of this package keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # `reftlens presets | head` is no error: typer ends quietly
        except (ValueError, OSError, FloatingPointError) as error:
            typer.secho(f"error: {harmless(' '.join(str(error).split()))}", fg=typer.colors.RED, err=True)
            raise typer.Exit(code=1) from error
