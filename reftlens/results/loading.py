"""Loads a saved result, of whatever class."""

from __future__ import annotations

from pathlib import Path

from reftlens.results.base import Result
from reftlens.results.scores import Evaluation


def load(path: str | Path) -> Result:
    """Reads a result that its `save` wrote. Nothing in it is executed.

    Args:
        path: the folder; for an `Evaluation`, the file. The module of a class of your own must be
            imported.

    Raises:
        ValueError: If it is not a saved result, is damaged, or is of an unknown class.
        OSError: If it cannot be opened.
    """
    return Evaluation.load(path) if Path(path).is_file() else Result.load(path)
