"""Imports a module that the user names."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType


def import_named(name: str) -> ModuleType:
    """Imports a module by its name. Like `python -m`, it also finds modules in the working directory.

    Args:
        name: such as "my_module".

    Raises:
        ImportError: If it cannot be imported.
    """
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    finally:
        # By value: the module may have put an entry of its own in front.
        with suppress(ValueError):
            sys.path.remove(here)
